-- The distinct uids of one window: from the sets of finer windows, and from frames where there are none.
--
-- Grain: one row a uid, in order.
-- Relations: sets   (uid)             sets of the finer windows inside
--            frames (event_time, uid) frames of hours without a set of their own
-- Parameters: $start_s, $end_s: the window, half-open
-- Safe to run twice: the whole set is made anew.
SELECT DISTINCT to_timestamp($start_s::BIGINT) AS event_time, uid
FROM (
    SELECT uid FROM sets
    UNION ALL
    SELECT uid FROM frames
    WHERE epoch_us(event_time) >= $start_s::BIGINT * 1000000 AND epoch_us(event_time) < $end_s::BIGINT * 1000000
)
ORDER BY uid
