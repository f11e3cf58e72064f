-- Union of states.
--
-- hll_union(hll) is an aggregate; the grain of the result is the caller's GROUP BY. The register of a union
-- is the greatest of its parts, so order, grouping and repetition of the parts change no bit: it is safe to
-- run twice. NULL states are passed over; no states give NULL. States of different lg_k raise.
--
--   SELECT day, hll_union(hll) AS hll FROM minute_counts GROUP BY day;
--   SELECT hll_estimate(hll_union(hll)) FROM minute_counts WHERE window_start >= '2026-01-01';
--
-- Costs: the registers of all parts as rows, 2^lg_k for each part, on their way through a hash table of
-- 2^lg_k rows for each group.

-- Union of a list of states of one lg_k. The list is unnested in a subquery without a FROM, so no name of
-- the caller's can be taken for one of the names in here.
CREATE OR REPLACE MACRO hll_union_list(states) AS (
    SELECT CASE
        WHEN count(*) = 0 THEN NULL
        WHEN min(parts) <> max(parts) THEN error(
            'hll_union: states of different lg_k in one union (the greatest is ' || (length(bin(count(*))) - 1)
            || '); only states of one lg_k can be merged: GROUP BY hll_lg_k(hll)')
        ELSE hll_assemble(
            encode(string_agg(chr(value), '' ORDER BY slot)),
            length(bin(count(*))) - 1,
            count(*) FILTER (value = 0),
            hll_low_sum(value),
            hll_high_sum(value))
        END
    FROM (
        SELECT slot, max(ascii(register)) AS value, count(*) AS parts
        FROM (
            SELECT
                unnest(string_split(hll_registers(state), '')) AS register,
                unnest(range(1 << hll_lg_k(state))) AS slot
            FROM (SELECT unnest(states) AS state)
            WHERE state IS NOT NULL
        )
        GROUP BY slot
    )
);

CREATE OR REPLACE MACRO hll_union(hll) AS
    hll_union_list(list(hll));
