-- Coarser windows from finer ones: sums, and the union of their HLL states. Never back to the frames.
--
-- Grain: one row a target window, also where it has no children.
-- Relations: targets  (window_start_s, window_end_s, users): `users` is the exact count of the window's uid
--                     set, NULL where there is no set or it is out of date
--            children result rows of the next finer grain
--            edges    minute rows; they fill in where a local midnight cuts an hour
-- Parameter: $lg_k, that of the targets; states of children with a larger one are folded to it, a smaller one raises
-- Safe to run twice: whole windows are merged anew. The union takes the greatest value of each register, so
-- neither order nor repetition matters.
--
-- The union is written out rather than called (hll_union): the registers are in hand then, and the estimate
-- needs no packed state to be read again.

WITH parts AS (
    SELECT t.window_start_s, c.frames, c.late_frames, c.held_frames, c.rejected_frames, c.hll
    FROM targets t
    JOIN children c
      ON c.window_start >= to_timestamp(t.window_start_s) AND c.window_end <= to_timestamp(t.window_end_s)
    UNION ALL
    SELECT t.window_start_s, e.frames, e.late_frames, e.held_frames, e.rejected_frames, e.hll
    FROM targets t
    JOIN edges e
      ON e.window_start >= to_timestamp(t.window_start_s) AND e.window_end <= to_timestamp(t.window_end_s)
     AND (epoch_us(e.window_start) // 3600000000 * 3600 < t.window_start_s
          OR epoch_us(e.window_start) // 3600000000 * 3600 + 3600 > t.window_end_s)
),
sums AS (
    SELECT
        window_start_s,
        sum(frames)::BIGINT          AS frames,
        sum(late_frames)::BIGINT     AS late_frames,
        sum(held_frames)::BIGINT     AS held_frames,
        sum(rejected_frames)::BIGINT AS rejected_frames
    FROM parts
    GROUP BY window_start_s
),
registers AS (
    SELECT window_start_s, (slot & ((1 << $lg_k) - 1))::INTEGER AS slot, hll_register(max(ascii(register))) AS value
    FROM (
        SELECT
            window_start_s,
            unnest(string_split(stretch.registers, '')) AS register,
            unnest(hll_stretch_slots(stretch))          AS slot
        FROM (SELECT window_start_s, unnest(hll_byte_stretches(hll_bytes_for(hll, $lg_k))) AS stretch FROM parts)
    )
    WHERE register <> chr(0)
    GROUP BY ALL
),
states AS (
    SELECT
        window_start_s,
        hll_state(slot, value, $lg_k)        AS hll,
        hll_estimate_registers(value, $lg_k) AS estimate,
        count(*)                             AS used_registers
    FROM registers
    GROUP BY window_start_s
)
SELECT
    window_start_s,
    window_end_s,
    coalesce(frames, 0)          AS frames,
    users                        AS unique_users,
    coalesce(late_frames, 0)     AS late_frames,
    coalesce(held_frames, 0)     AS held_frames,
    coalesce(rejected_frames, 0) AS rejected_frames,
    hll,
    estimate,
    hll_lower_from(estimate, used_registers, $lg_k) AS estimate_lower,
    hll_upper_from(estimate, used_registers, $lg_k) AS estimate_upper
FROM targets
LEFT JOIN sums USING (window_start_s)
LEFT JOIN states USING (window_start_s)
