-- Unpacking a state into its registers.
--
-- Grain: one state in, its 2^lg_k registers out, in slot order. Register values are below 64, so the
-- register bytes are ASCII text, and splitting text is the quickest way in plain SQL, 0.2 to 0.4 ms
-- a state at lg_k 12 on two shared cores; reading byte by byte with t[i] took 7 ms.
--
-- Pure expressions, so they are safe to run twice.

-- The registers as text, a character each: the cheapest form to hand to string_split(..., ''), or to
-- count one value in. The pattern costs a tenth of the unpacking and keeps damaged bytes out of a count.
CREATE OR REPLACE MACRO hll_registers(hll) AS
    CASE
        WHEN regexp_matches(decode(hll_checked(hll)[41:]), '[^\x00-\x3f]')
            THEN hll_refuse(hll::BLOB, 'a register above 63')
        ELSE decode(hll_checked(hll)[41:])
    END;

-- The register values as a list; slot s is element s + 1.
--
--   SELECT unnest(hll_values(hll)) AS value, generate_subscripts(hll_values(hll), 1) - 1 AS slot FROM states;
CREATE OR REPLACE MACRO hll_values(hll) AS
    list_transform(string_split(hll_registers(hll), ''), lambda register: ascii(register));
