-- The same counts and states as in window_counts.sql, for each value of each dimension.
--
-- Grain: one row a target window, in order; by_dimension is a list with an entry a (dimension, value), in order.
-- Relations: frames  (event_time, uid, coupon, dimensions)  every frame that may lie in a target
--            targets (window_start_s)
--            minutes (minute_s, window_start_s)             as in window_counts.sql
-- Parameters: $dimensions: names; $most: values of a dimension that have an entry of their own in a window; $lg_k
-- Safe to run twice: whole windows are recomputed from frames.
--
-- A statement of its own, run only where dimensions are set: planning takes longer than running when there is
-- little to count. The values with most frames have an entry each, of equals those that come first as text; all the
-- others are one, (other). A frame whose map lacks a dimension was read before it was set: it is in no entry of it.

WITH per_user AS (
    SELECT
        window_start_s,
        dimension,
        dimensions[dimension] AS value,
        uid,
        any_value(coupon)     AS coupon,
        count(*)              AS frames
    FROM frames
    JOIN minutes ON epoch_us(event_time) // 60000000 * 60 = minutes.minute_s
    CROSS JOIN (SELECT unnest($dimensions::VARCHAR[]) AS dimension)
    WHERE dimensions[dimension] IS NOT NULL
    GROUP BY ALL
),
ranked AS (
    SELECT
        *,
        row_number() OVER (
            PARTITION BY window_start_s, dimension ORDER BY value = '(other)', frames DESC, value) AS place
    FROM (
        SELECT window_start_s, dimension, value, sum(frames)::BIGINT AS frames
        FROM per_user
        GROUP BY ALL
    )
),
per_entry AS (
    SELECT
        window_start_s,
        dimension,
        CASE WHEN place > $most THEN '(other)' ELSE value END AS value,
        uid,
        any_value(coupon)      AS coupon,
        sum(per_user.frames)   AS frames
    FROM per_user
    JOIN ranked USING (window_start_s, dimension, value)
    GROUP BY ALL
),
counts AS (
    SELECT window_start_s, dimension, value, sum(frames)::BIGINT AS frames, count(*) AS unique_users
    FROM per_entry
    GROUP BY ALL
),
registers AS (
    SELECT window_start_s, dimension, value, hll_slot(coupon, $lg_k) AS slot, max(hll_value(coupon)) AS register
    FROM per_entry
    GROUP BY ALL
),
states AS (
    SELECT
        window_start_s,
        dimension,
        value,
        hll_state(slot, register, $lg_k)        AS hll,
        hll_estimate_registers(register, $lg_k) AS estimate,
        count(*)                                AS used_registers
    FROM registers
    GROUP BY window_start_s, dimension, value
),
entries AS (
    SELECT
        window_start_s,
        list({
            'dimension': dimension,
            'value': value,
            'frames': frames,
            'unique_users': unique_users,
            'estimate': estimate,
            'estimate_lower': hll_lower_from(estimate, used_registers, $lg_k),
            'estimate_upper': hll_upper_from(estimate, used_registers, $lg_k),
            'hll': hll
        } ORDER BY dimension, value) AS by_dimension
    FROM counts
    JOIN states USING (window_start_s, dimension, value)
    GROUP BY window_start_s
)
SELECT window_start_s, coalesce(by_dimension, []) AS by_dimension
FROM targets
LEFT JOIN entries USING (window_start_s)
ORDER BY window_start_s
