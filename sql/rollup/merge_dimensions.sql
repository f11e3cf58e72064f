-- Coarser windows from finer ones, for each value of each dimension: see merge_children.sql.
--
-- Grain: one row a target window, in order; by_dimension is a list with an entry a (dimension, value), in order.
-- Relations: targets  (window_start_s, window_end_s)
--            users_by (window_start_s, dimension, value, users)  exact counts of uid sets that are up to date
--            children, edges: result rows, as in merge_children.sql
-- Parameters: $dimensions: names; $most: values of a dimension that have an entry of their own in a window; $lg_k
-- Safe to run twice: whole windows are merged anew, and neither order nor repetition matters.
--
-- Where a finer window had an (other), users of a value may be hidden in there. The upper bound of a value is then
-- that of its own state united with the (other) of all the finer windows; its frames, estimate and lower bound are
-- of what was counted under its name.

WITH parts AS (
    SELECT t.window_start_s, unnest(c.by_dimension) AS entry
    FROM targets t
    JOIN children c
      ON c.window_start >= to_timestamp(t.window_start_s) AND c.window_end <= to_timestamp(t.window_end_s)
    UNION ALL
    SELECT t.window_start_s, unnest(e.by_dimension) AS entry
    FROM targets t
    JOIN edges e
      ON e.window_start >= to_timestamp(t.window_start_s) AND e.window_end <= to_timestamp(t.window_end_s)
     AND (epoch_us(e.window_start) // 3600000000 * 3600 < t.window_start_s
          OR epoch_us(e.window_start) // 3600000000 * 3600 + 3600 > t.window_end_s)
),
named AS (
    SELECT window_start_s, entry.dimension AS dimension, entry.value AS value, entry.frames AS frames, entry.hll AS hll
    FROM parts
    WHERE list_contains($dimensions::VARCHAR[], entry.dimension)
),
ranked AS (
    SELECT
        *,
        CASE
            WHEN row_number() OVER (
                PARTITION BY window_start_s, dimension ORDER BY value = '(other)', frames DESC, value) > $most
                THEN '(other)'
            ELSE value
        END AS entry
    FROM (
        SELECT window_start_s, dimension, value, sum(frames)::BIGINT AS frames
        FROM named
        GROUP BY ALL
    )
),
sums AS (
    SELECT window_start_s, dimension, entry AS value, sum(frames)::BIGINT AS frames
    FROM ranked
    GROUP BY ALL
),
registers AS (
    SELECT window_start_s, dimension, value, slot::INTEGER AS slot, hll_register(max(ascii(character))) AS register
    FROM (
        SELECT
            window_start_s,
            dimension,
            value,
            unnest(string_split(stretch.registers, '')) AS character,
            unnest(hll_stretch_slots(stretch))          AS slot
        FROM (SELECT window_start_s, dimension, value, unnest(hll_stretches(hll)) AS stretch FROM named)
    )
    WHERE character <> chr(0)
    GROUP BY ALL
),
entry_registers AS (
    SELECT window_start_s, dimension, entry AS value, slot, max(register) AS register
    FROM registers
    JOIN ranked USING (window_start_s, dimension, value)
    GROUP BY ALL
),
hidden AS (
    SELECT window_start_s, dimension, slot, register
    FROM registers
    WHERE value = '(other)'
),
-- Each entry's own registers, and those of a named one together with what may be hidden.
together AS (
    SELECT *, false AS is_widened
    FROM entry_registers
    UNION ALL
    SELECT window_start_s, dimension, value, slot, max(register) AS register, true AS is_widened
    FROM (
        FROM entry_registers
        SEMI JOIN hidden USING (window_start_s, dimension)
        UNION ALL
        SELECT window_start_s, dimension, value, slot, register
        FROM sums
        JOIN hidden USING (window_start_s, dimension)
    )
    WHERE value <> '(other)'
    GROUP BY ALL
),
states AS (
    SELECT
        window_start_s,
        dimension,
        value,
        is_widened,
        hll_state(slot, register, $lg_k)        AS hll,
        hll_estimate_registers(register, $lg_k) AS estimate,
        count(*)                                AS used_registers
    FROM together
    GROUP BY window_start_s, dimension, value, is_widened
),
bounded AS (
    SELECT
        *,
        hll_lower_from(estimate, used_registers, $lg_k) AS estimate_lower,
        hll_upper_from(estimate, used_registers, $lg_k) AS estimate_upper
    FROM states
),
entries AS (
    SELECT
        window_start_s,
        list({
            'dimension': dimension,
            'value': value,
            'frames': frames,
            'unique_users': users,
            'estimate': own.estimate,
            'estimate_lower': own.estimate_lower,
            'estimate_upper': coalesce(widened.estimate_upper, own.estimate_upper),
            'hll': own.hll
        } ORDER BY dimension, value) AS by_dimension
    FROM sums
    JOIN (FROM bounded WHERE NOT is_widened) own USING (window_start_s, dimension, value)
    LEFT JOIN (FROM bounded WHERE is_widened) widened USING (window_start_s, dimension, value)
    LEFT JOIN users_by USING (window_start_s, dimension, value)
    GROUP BY window_start_s
)
SELECT window_start_s, coalesce(by_dimension, []) AS by_dimension
FROM targets
LEFT JOIN entries USING (window_start_s)
ORDER BY window_start_s
