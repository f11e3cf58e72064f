-- Little-endian numbers, as upper or lower case hexadecimal text, to and from SQL numbers.
--
-- DuckDB reads and writes hexadecimal with the high byte first, the sketch has the low byte first, and no
-- function turns a DOUBLE into its eight bytes. Every DOUBLE here is n / 2^scale with an integer n <= 2^52,
-- so sign, rounding, subnormals and infinities do not arise and both directions are exact.
--
-- Pure expressions, so they are safe to run twice. Microseconds a call.

-- A macro pastes its argument at each mention, and the arguments here are long: each is mentioned once, by a
-- pattern or as the variable of a lambda over a list of one. Pasted, a union with its estimate and bounds took
-- 0.36 s to plan instead of 0.22 s.

CREATE OR REPLACE MACRO hll_reverse_4_bytes(digits) AS
    regexp_replace(digits, '(..)(..)(..)(..)', '\4\3\2\1');

CREATE OR REPLACE MACRO hll_reverse_8_bytes(digits) AS
    regexp_replace(digits, '(..)(..)(..)(..)(..)(..)(..)(..)', '\8\7\6\5\4\3\2\1');

-- The 16 digits of the DOUBLE n / 2^scale; 0 <= n <= 2^52 (BIGINT).
CREATE OR REPLACE MACRO hll_double_digits(n, scale) AS
    list_transform([n], lambda x: CASE
        WHEN x = 0 THEN repeat('0', 16)
        ELSE hll_reverse_8_bytes(printf('%016x',
            ((1022 + length(bin(x)) - scale) << 52)
            + (x << (53 - length(bin(x)))) - (1::BIGINT << 52)))
    END)[1];

-- The DOUBLE behind 16 digits; NaN and infinities read as numbers above 2^1023, which no sketch holds.
CREATE OR REPLACE MACRO hll_double(digits) AS
    list_transform([hll_reverse_8_bytes(digits)], lambda x: CASE
        WHEN x = repeat('0', 16) THEN 0.0::DOUBLE
        ELSE (1 + ('0x' || x[4:16])::BIGINT / pow(2, 52)) * pow(2, ('0x' || x[1:3])::INTEGER - 1023)
    END)[1];

CREATE OR REPLACE MACRO hll_integer(digits) AS
    ('0x' || hll_reverse_4_bytes(digits))::BIGINT;
