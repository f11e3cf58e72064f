-- Which windows have other counts by dimension than were stored: values, frames, states, or exact users where both
-- know them. What only becomes known, as the exact users of a closed window do, is no other count.
--
-- Grain: one row a computed window, in order.
-- Relations: computed (window_start_s, by_dimension); previous: the rows stored until now
-- Safe to run twice: it changes nothing. Run only where dimensions are set: see window_dimensions.sql.
SELECT
    window_start_s,
    list_transform(p.by_dimension, lambda e: (e.dimension, e.value, e.frames, e.hll))
        IS DISTINCT FROM list_transform(c.by_dimension, lambda e: (e.dimension, e.value, e.frames, e.hll))
    OR coalesce(list_bool_or(list_transform(
        list_zip(p.by_dimension, c.by_dimension),
        lambda pair: pair[1].unique_users <> pair[2].unique_users)), false) AS entries_changed
FROM computed c
LEFT JOIN previous p ON p.window_start = to_timestamp(c.window_start_s)
ORDER BY window_start_s
