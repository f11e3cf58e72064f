-- The distinct uids of one window, with their values of the dimensions: from the sets of finer windows, and from
-- frames where there are none.
--
-- Grain: one row a (uid, dimensions), in order: a user with two values has two rows.
-- Relations: sets   (uid, dimensions)             sets of the finer windows inside
--            frames (event_time, uid, dimensions) frames of hours without a set of their own
-- Parameters: $start_s, $end_s: the window, half-open
-- Safe to run twice: the whole set is made anew.
SELECT DISTINCT to_timestamp($start_s::BIGINT) AS event_time, uid, dimensions
FROM (
    SELECT uid, dimensions FROM sets
    UNION ALL
    SELECT uid, dimensions FROM frames
    WHERE epoch_us(event_time) >= $start_s::BIGINT * 1000000 AND epoch_us(event_time) < $end_s::BIGINT * 1000000
)
ORDER BY uid, dimensions
