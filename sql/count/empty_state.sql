-- The HLL state of no users. Parameter: $lg_k. One row.
SELECT hll_state(slot, value, $lg_k) AS hll
FROM (SELECT 0 AS slot, 0::UTINYINT AS value WHERE false)
