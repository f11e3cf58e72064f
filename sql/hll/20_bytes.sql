-- Little-endian numbers, as hexadecimal text, to and from SQL numbers.
--
-- DuckDB turns numbers into bytes and back as BIT, high byte first; the sketch has the low byte first. Every
-- DOUBLE written here is n / 2^scale with an integer n <= 2^52, so it is exact.
--
-- Pure expressions, so they are safe to run twice. Microseconds a call.

-- A macro pastes its argument at each mention, and each pasted node is planned anew. What is needed more than
-- once is therefore named, as the variable of a lambda over a list of one, here and in all the files after this.

CREATE OR REPLACE MACRO hll_reverse_4_bytes(digits) AS
    regexp_replace(digits, '(..)(..)(..)(..)', '\4\3\2\1');

CREATE OR REPLACE MACRO hll_reverse_8_bytes(digits) AS
    regexp_replace(digits, '(..)(..)(..)(..)(..)(..)(..)(..)', '\8\7\6\5\4\3\2\1');

-- The 16 digits of the DOUBLE n / 2^scale; 0 <= n <= 2^52 (BIGINT).
CREATE OR REPLACE MACRO hll_double_digits(n, scale) AS
    hll_reverse_8_bytes(hex((n::DOUBLE / pow(2, scale))::DOUBLE::BIT::BLOB));

CREATE OR REPLACE MACRO hll_double(digits) AS
    unhex(hll_reverse_8_bytes(digits))::BIT::DOUBLE;

CREATE OR REPLACE MACRO hll_integer(digits) AS
    ('0x' || hll_reverse_4_bytes(digits))::BIGINT;
