-- Exact counts and HLL states of windows, from their frames.
--
-- Grain: one row a target window, also where it has no frames.
-- Relations: frames  (event_time, uid, coupon, late_by_s)  every frame that may lie in a target
--            targets (window_start_s, window_end_s)
--            minutes (minute_s, window_start_s)            the minutes of the targets; to count minutes
--                                                          themselves, each is its own window
--            tallies (window_start_s, held_frames, rejected_frames)
-- Parameter: $lg_k
-- Safe to run twice: whole windows are recomputed from frames, nothing is added to an earlier answer.
--
-- Users are made distinct first: the sketch then sees each user once a window, not once a frame, and its
-- cost all but vanishes beside the exact count.

WITH per_user AS (
    SELECT
        window_start_s,
        uid,
        any_value(coupon)               AS coupon,
        count(*)                        AS frames,
        count(*) FILTER (late_by_s > 0) AS late_frames
    FROM frames
    JOIN minutes ON epoch_us(event_time) // 60000000 * 60 = minutes.minute_s
    GROUP BY window_start_s, uid
),
counts AS (
    SELECT
        window_start_s,
        sum(frames)::BIGINT      AS frames,
        count(*)                 AS unique_users,
        sum(late_frames)::BIGINT AS late_frames
    FROM per_user
    GROUP BY window_start_s
),
registers AS (
    SELECT window_start_s, hll_slot(coupon, $lg_k) AS slot, max(hll_value(coupon)) AS value
    FROM per_user
    GROUP BY ALL
),
states AS (
    SELECT
        window_start_s,
        hll_state(slot, value, $lg_k)           AS hll,
        hll_estimate_registers(value, $lg_k)    AS estimate,
        count(*)                                AS used_registers
    FROM registers
    GROUP BY window_start_s
)
SELECT
    window_start_s,
    window_end_s,
    coalesce(frames, 0)          AS frames,
    coalesce(unique_users, 0)    AS unique_users,
    coalesce(late_frames, 0)     AS late_frames,
    coalesce(held_frames, 0)     AS held_frames,
    coalesce(rejected_frames, 0) AS rejected_frames,
    hll,
    estimate,
    hll_lower_from(estimate, used_registers, $lg_k) AS estimate_lower,
    hll_upper_from(estimate, used_registers, $lg_k) AS estimate_upper
FROM targets
LEFT JOIN counts USING (window_start_s)
LEFT JOIN states USING (window_start_s)
LEFT JOIN tallies USING (window_start_s)
ORDER BY window_start_s
