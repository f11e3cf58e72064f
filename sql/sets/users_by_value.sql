-- How many different users of one window have each value of each dimension.
--
-- Grain: one row a (dimension, value), in order: of each dimension the values with most users.
-- Relation: uids (uid, dimensions), the set of the window
-- Parameters: $dimensions: names; $most: values of a dimension
-- Safe to run twice: it changes nothing. (other) is no value: which values are in there is up to the counts.
SELECT dimension, value, count(*) AS users
FROM (
    SELECT DISTINCT dimension, dimensions[dimension] AS value, uid
    FROM uids
    CROSS JOIN (SELECT unnest($dimensions::VARCHAR[]) AS dimension)
    WHERE dimensions[dimension] <> '(other)'
)
GROUP BY dimension, value
QUALIFY row_number() OVER (PARTITION BY dimension ORDER BY count(*) DESC, value) <= $most
ORDER BY dimension, value
