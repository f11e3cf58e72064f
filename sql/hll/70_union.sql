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
-- How: one expression over list(hll), without a subquery: a correlated one took 18 ms of planning by itself. States
-- with many registers in use become words of 16 registers, united two states at a time by arithmetic on whole
-- words; the others become entries, united by one sort. Of 360 states of 19 registers a union took 0.10 ms a state
-- (rows and a GROUP BY: 0.32), of 4,096 registers 0.28 (0.18). It takes 130 to 150 ms to plan (40), since all
-- layouts are planned with it.

-- Register bytes folded to fewer registers: the low bits of a slot are its slot there, the greatest value counts.
CREATE OR REPLACE MACRO hll_folded_bytes(bytes, registers) AS
    list_transform(
        [list_transform(string_split(decode(hll_checked_bytes(bytes)), ''), lambda r: ascii(r)::UTINYINT)],
        lambda fine: encode(array_to_string(list_transform(
            range(1, registers + 1),
            lambda i: chr(list_max(fine[i:len(fine):registers])::INTEGER)), '')))[1];

-- Words of 16 registers, each a byte. 0.13 ms a state at lg_k 12, nearly all of it the slices; words of 8 took 0.24.
CREATE OR REPLACE MACRO hll_words(bytes) AS
    list_transform(range(octet_length(bytes) // 16), lambda i: bytes[16 * i + 1:16 * i + 16]::BIT::UHUGEINT);

CREATE OR REPLACE MACRO hll_bytes_of_words(words) AS
    encode(array_to_string(list_transform(words, lambda x: decode(x::BIT::BLOB)), ''));

-- Byte by byte the greater of two words, bytes below 128. With its top bit set, a byte of x less that of y keeps
-- the bit where x is not less, and borrows from no other byte; less itself shifted by 7 it is a mask.
CREATE OR REPLACE MACRO hll_not_less(x, y) AS
    ((x::UHUGEINT | 170808403787765189503184116671632670848::UHUGEINT) - y::UHUGEINT) & 170808403787765189503184116671632670848::UHUGEINT;

CREATE OR REPLACE MACRO hll_greater_word(x, y) AS
    xor(y::UHUGEINT, xor(x::UHUGEINT, y::UHUGEINT) & (hll_not_less(x, y) - (hll_not_less(x, y) >> 7)));

-- Used registers of a state as entries: slot << 6 | value.
CREATE OR REPLACE MACRO hll_stretch_entries(bytes) AS
    flatten(list_transform(hll_byte_stretches(bytes), lambda stretch: list_filter(
        list_transform(string_split(stretch.registers, ''),
                       lambda register, i: (stretch.first_slot + i - 1) << 6 | ascii(register)),
        lambda entry: entry & 63 <> 0)));

-- Register bytes of the union of register bytes, folded to the fewest registers. What is sparse is
-- told by what is left without runs of zeros.
CREATE OR REPLACE MACRO hll_united_bytes(parts) AS
    list_transform([list_transform([list_transform([list_transform([{
        'parts': parts::BLOB[],
        'registers': list_min(list_transform(parts::BLOB[], lambda part: octet_length(part)))
    }], lambda given: list_transform(given.parts, lambda part: CASE
        WHEN octet_length(part) = given.registers THEN part
        ELSE hll_folded_bytes(part, given.registers)
    END))[1]], lambda folded: list_transform(folded, lambda part: {
        'bytes': part,
        'sparse': strlen(replace(decode(part), repeat(chr(0), 8), '')) < octet_length(part) // 4
    }))[1]], lambda marked: {
        'dense': list_transform(list_filter(marked, lambda part: NOT part.sparse), lambda part: part.bytes),
        'registers': octet_length(marked[1].bytes),
        'entries': flatten(list_transform(list_filter(marked, lambda part: part.sparse),
                                          lambda part: hll_stretch_entries(part.bytes)))
    })[1]], lambda sorted_out: hll_bytes_of_words(list_reduce(
        list_transform(
            list_concat(sorted_out.dense, CASE
                WHEN len(sorted_out.entries) > 0 OR len(sorted_out.dense) = 0
                    THEN [hll_bytes_of_coupons(sorted_out.entries, sorted_out.registers)]
                ELSE []
            END),
            lambda part: hll_words(part)),
        lambda united, other: list_transform(united, lambda x, n: hll_greater_word(x, other[n])))))[1];

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

-- The states are read where they are gathered, not in a lambda over the list: there planning took 530 ms
-- of CPU on a busy machine, 160 so.
CREATE OR REPLACE MACRO hll_union_bytes(parts) AS
    list_transform([parts::BLOB[]], lambda gathered: CASE
        WHEN len(gathered) > 0 THEN hll_united_bytes(gathered)
    END)[1];

CREATE OR REPLACE MACRO hll_union(hll) AS
    hll_state_of_bytes(hll_union_bytes(list(hll_checked_bytes(hll_bytes(hll))) FILTER (hll IS NOT NULL)));

-- The state of the same uids at a smaller lg_k; the same state in the layout of hll_state at its own lg_k.
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
