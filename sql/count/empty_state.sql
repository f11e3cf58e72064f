-- The HLL state of no users. Parameter: $lg_k. One row. The same bytes as hll_state() of no rows, but quicker to plan.
SELECT hll_assemble(repeat('\x00'::BLOB, 1 << $lg_k), $lg_k, 1 << $lg_k, (1 << $lg_k)::BIGINT << 31, 0) AS hll
