-- Windows stored as provisional that are computed again though nothing marked them: those that are final by now,
-- and the newest ones. The others wait: a frame that reaches one leaves a mark.
--
-- Relation: previous, the result rows stored until now. Grain: one row a window.
-- Parameters: $final_before_s: windows that end at or before it are final (NULL: none)
--             $recent_from_s, $recent_until_s: windows that start in this span, half-open, are the newest
SELECT epoch_us(window_start) // 1000000 AS window_start_s
FROM previous
WHERE status = 'provisional'
  AND (epoch_us(window_end) <= $final_before_s::BIGINT * 1000000
       OR (epoch_us(window_start) >= $recent_from_s::BIGINT * 1000000
           AND epoch_us(window_start) < $recent_until_s::BIGINT * 1000000))
