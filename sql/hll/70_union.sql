-- Union of states, and folding to fewer registers.
--
-- hll_union(hll) is an aggregate; the grain of the result is the caller's GROUP BY. The register of a union
-- is the greatest of its parts, so order, grouping and repetition of the parts change no bit: it is safe to
-- run twice. NULL states are passed over; no states give NULL. States of several lg_k are folded to the smallest
-- of them first, as in the DataSketches library: a finer state knows all that a coarser one does, not the reverse.
--
--   SELECT day, hll_union(hll) AS hll FROM minute_counts GROUP BY day;
--   SELECT hll_estimate(hll_union(hll)) FROM minute_counts WHERE window_start >= '2026-01-01';
--
-- Costs: the used registers of all parts as rows, on their way through a hash table of 2^lg_k rows for each group, and
-- one sort of those.

-- Union of a list of register bytes. The list is unnested in a subquery without a FROM of the caller's, so no name of
-- the caller's can be taken for one of the names in here.
CREATE OR REPLACE MACRO hll_union_bytes(parts) AS (
    SELECT CASE
        WHEN count(*) > 0 THEN hll_assemble(
            encode(string_agg(chr(value), '' ORDER BY slot)),
            length(bin(count(*))) - 1,
            count(*) FILTER (value = 0),
            hll_low_sum(value),
            hll_high_sum(value))
        END
    FROM (
        SELECT slot, max(value) AS value
        FROM (
            SELECT
                unnest(hll_stretch_slots(stretch))::BIGINT & (registers - 1) AS slot,
                ascii(unnest(string_split(stretch.registers, '')))           AS value
            FROM (
                SELECT registers, unnest(hll_byte_stretches(part)) AS stretch
                FROM (
                    SELECT
                        unnest(parts)                                                         AS part,
                        list_min(list_transform(parts, lambda one: octet_length(one)))       AS registers
                )
            )
            UNION ALL
            SELECT unnest(range(list_min(list_transform(parts, lambda one: octet_length(one))))) AS slot, 0 AS value
        )
        GROUP BY slot
    )
);

CREATE OR REPLACE MACRO hll_union(hll) AS
    hll_union_bytes(list(hll_checked_bytes(hll_bytes(hll))) FILTER (hll IS NOT NULL));

-- Register bytes folded to fewer registers: the low bits of a slot are its slot there, the greatest value counts.
CREATE OR REPLACE MACRO hll_folded_bytes(bytes, registers) AS
    list_transform(
        [list_transform(string_split(decode(hll_checked_bytes(bytes)), ''), lambda r: ascii(r)::UTINYINT)],
        lambda fine: encode(array_to_string(list_transform(
            range(1, registers + 1),
            lambda i: chr(list_max(fine[i:len(fine):registers])::INTEGER)), '')))[1];

-- A state of register bytes.
CREATE OR REPLACE MACRO hll_state_of_bytes(register_bytes) AS
    list_transform([register_bytes], lambda bytes: list_transform(
        [list_transform(string_split(decode(bytes), ''), lambda r: ascii(r)::UTINYINT)],
        lambda registers: hll_assemble(
            bytes,
            length(bin(octet_length(bytes))) - 1,
            len(list_filter(registers, lambda x: x = 0)),
            list_sum(list_transform(registers, lambda x: 2147483648 >> x))::BIGINT,
            coalesce(list_sum(list_transform(list_filter(registers, lambda x: x > 31),
                                             lambda x: 9223372036854775808::UBIGINT >> x)), 0)::BIGINT))[1])[1];

-- The state of the same uids at a smaller lg_k.
--
--   SELECT hll_fold(hll, 10) FROM day_counts;
CREATE OR REPLACE MACRO hll_fold(hll, lg_k) AS
    list_transform([{'bytes': hll_bytes(hll), 'lg_k': lg_k::INTEGER}], lambda asked: CASE
        WHEN asked.bytes IS NULL OR asked.lg_k IS NULL THEN NULL
        WHEN asked.lg_k < 4 THEN error('hll_fold: lg_k must be 4 to 21, found ' || asked.lg_k)
        WHEN 1 << least(asked.lg_k, 30) > octet_length(asked.bytes)
            THEN error('hll_fold: a state of lg_k ' || (length(bin(octet_length(asked.bytes))) - 1)
                       || ' cannot be made one of lg_k ' || asked.lg_k || ': only down, to fewer registers')
        ELSE hll_state_of_bytes(hll_folded_bytes(asked.bytes, 1 << asked.lg_k))
    END)[1];
