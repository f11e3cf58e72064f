-- Packing registers into a state.
--
-- hll_state(slot, value, lg_k) is an aggregate: one row for each register that is not empty, value the
-- greatest of its slot; the grain of the result is the caller's GROUP BY. lg_k must be a constant, a bound
-- parameter or getvariable(). No rows give the empty state. The same rows in any order give the same bytes,
-- so it is safe to run twice.
--
--   SELECT minute, hll_state(slot, value, 12) AS hll
--   FROM (SELECT minute, hll_slot(coupon, 12) AS slot, max(hll_value(coupon)) AS value
--         FROM frames GROUP BY minute, slot)
--   GROUP BY minute;
--
-- How: each bit of a value has its final place in the register bytes, and one bitstring_agg sets them all. It
-- runs over a list, group by group, so a state of few users costs little more than its users. CPU time a state
-- at lg_k 12: 0.025 ms at 19 used registers, 0.055 at 100 (of 1,440 states), 0.9 at 4,096 (of 360, rows in random
-- order, other work beside). Six bitstring_aggs of the GROUP BY itself OR-ed, and the used registers counted by
-- replacing each zero, took 0.11, 0.17 and 1.3 ms. Sorted text, string_agg(chr(value) ORDER BY slot), took 1.1 ms
-- when full; list_sort with the gaps filled by repeat() 0.04 at 19. Planning takes 10 ms of CPU, at any lg_k.

-- The state as bytes. empty_registers counts registers at 0; low_sum is the sum of 2^(31-value) over the
-- values below 32 (empty registers too), high_sum the sum of 2^(63-value) over the rest: integers, so that
-- no order of adding changes a bit. "Out of order" tells readers that there is no HIP accumulator and
-- that they must use an estimator which holds after a union.
CREATE OR REPLACE MACRO hll_assemble(registers, lg_k, empty_registers, low_sum, high_sum) AS
    unhex('0A0107' || printf('%02x', lg_k::INTEGER) || '00'
          || CASE WHEN empty_registers = 1 << lg_k THEN '14' ELSE '10' END
          || '000A' || repeat('0', 16)
          || hll_double_digits(low_sum, 31)
          || hll_double_digits(high_sum, 63)
          || hll_reverse_4_bytes(printf('%08x', empty_registers::BIGINT))
          || '00000000')
    || registers;

-- Where the set bits number `bit` of the values go. In a BIT the highest bit of a byte comes first.
CREATE OR REPLACE MACRO hll_places(slot, value, bit) AS
    list(((slot << 3) + (7 - bit))::INTEGER) FILTER ((value & (1 << bit)) <> 0);

CREATE OR REPLACE MACRO hll_all_places(slot, value) AS
    flatten([hll_places(slot, value, 0), hll_places(slot, value, 1), hll_places(slot, value, 2),
             hll_places(slot, value, 3), hll_places(slot, value, 4), hll_places(slot, value, 5)]);

CREATE OR REPLACE MACRO hll_register_bytes(places, lg_k) AS
    coalesce(list_aggregate(places, 'bitstring_agg', 0, (8 << lg_k) - 1)::BLOB, repeat('\x00'::BLOB, 1 << lg_k));

-- A shift right past the end is 0, which leaves values of 32 and above out of the low sum by itself.
CREATE OR REPLACE MACRO hll_low_sum(value) AS
    coalesce(sum(2147483648 >> value), 0)::BIGINT;

CREATE OR REPLACE MACRO hll_high_sum(value) AS
    coalesce(sum(9223372036854775808::UBIGINT >> value) FILTER (value > 31), 0)::BIGINT;

-- Empty registers, where there is one row for each register in hand, 0 or not. count(value), not count(*):
-- pasted into a subquery (hll_estimate(hll_state(...))), an aggregate that names no column of the caller's
-- would count the rows of the subquery.
CREATE OR REPLACE MACRO hll_empty_registers(value, lg_k) AS
    (1 << lg_k) - count(value) FILTER (value > 0);

-- Of register bytes, how many are not 0. Runs of zeros go first: in a state of 19 users it took 73 us to replace
-- them one by one, and 17 us so.
CREATE OR REPLACE MACRO hll_used(registers) AS
    octet_length(encode(replace(replace(decode(registers), repeat(chr(0), 32), ''), chr(0), '')));

-- The same from the places of bits, which is cheaper as long as there are few.
CREATE OR REPLACE MACRO hll_used_slots(places, lg_k) AS
    coalesce(bit_count(list_aggregate(
        list_transform(places, lambda place: place >> 3), 'bitstring_agg', 0, (1 << lg_k) - 1)), 0);

-- Two rows for one slot would OR their values into a wrong one, so the rows are counted against the
-- registers that came out. Lists of one are a way to name what would be computed at each mention otherwise.
CREATE OR REPLACE MACRO hll_state(slot, value, lg_k) AS
    CASE
        WHEN lg_k NOT BETWEEN 4 AND 21
            THEN error('hll_state: lg_k must be 4 to 21, found ' || lg_k)
        WHEN max(value) > 63 OR min(value) < 0
            THEN error('hll_state: register values must be 0 to 63, found ' || min(value) || ' to ' || max(value))
        WHEN count(slot) <> count(value)
            THEN error('hll_state: slot and value must both be given, or both be NULL')
        ELSE list_transform(
            [hll_all_places(slot, value)],
            lambda places: list_transform(
                [hll_register_bytes(places, lg_k)],
                lambda registers: CASE
                    WHEN CASE
                             WHEN len(places) < (1 << lg_k) / 8 THEN hll_used_slots(places, lg_k)
                             ELSE hll_used(registers)
                         END <> count(value) FILTER (value > 0)
                        THEN error('hll_state: more than one row for a slot; take max(value) GROUP BY slot first')
                    ELSE hll_assemble(
                        registers,
                        lg_k,
                        hll_empty_registers(value, lg_k),
                        hll_low_sum(value) + ((1 << lg_k) - count(value))::BIGINT * 2147483648,
                        hll_high_sum(value))
                END)[1])[1]
    END;
