-- The binary layouts: the registers behind a BLOB, or an error that says why it cannot be read.
--
-- Apache DataSketches HLL, serial version 1. hll_state and hll_union write HLL_8 in HLL mode and nothing else, and
-- that is what the other macros take. hll_read (80_read.sql) makes it of every layout there is: types HLL_4, HLL_6 and
-- HLL_8, modes LIST, SET and HLL, compact and updatable. It is a macro of its own because all the layouts are planned
-- at each mention, 30 to 50 ms: in every macro they made a union with its estimate and bounds 340 ms to plan.
--   byte  0     preamble length in 4-byte words: 2 LIST, 3 SET, 10 HLL
--   byte  1     serial version: 1
--   byte  2     family: 7 (HLL)
--   byte  3     lg_k: 4..21; SET takes 8 or more
--   byte  4     log2 of the places of the coupon or exception table; not kept up where the bytes are compact
--   byte  5     flags: 4 empty, 8 compact, 16 out of order, 32 see hll_summary
--   byte  6     LIST number of coupons; HLL_4 least register value; HLL_8 0, or that value too after a union in Java
--   byte  7     bits 0-1 mode (0 LIST, 1 SET, 2 HLL), bits 2-3 type (0 HLL_4, 1 HLL_6, 2 HLL_8)
-- LIST: coupons (4 bytes each) from byte 8. SET: their number at byte 8, coupons from byte 12. HLL:
--   byte  8-15  HIP accumulator (DOUBLE); void when out of order
--   byte 16-31  sum of 2^-value over registers below 32, and over the rest (two DOUBLE)
--   byte 32-35  number of registers at byte 6: of empty ones, where that is 0
--   byte 36-39  number of exceptions, HLL_4 only
--   byte 40-    registers of 8, 6 or 4 bits, low bits first; HLL_6 has one byte more. In HLL_4 they count from
--               byte 6, and 15 stands for an exception: the register is in the pairs after them, which look
--               like coupons.
-- Compact bytes hold the coupons or pairs alone, updatable ones a hash table with zeros in its empty places; one
-- without any exception is there too, its size by lg_k (LG_AUX_ARR_INTS in C++ and Java).
-- Sources: https://github.com/apache/datasketches-java, hll/PreambleUtil.java and hll/ToByteArrayImpl.java;
-- https://github.com/apache/datasketches-cpp, hll/include, HllArray-, Hll4Array- and CouponList-internal.hpp.
-- Both write the same layouts, but for flag 32 and for byte 4 where it is not read.
--
-- Pure expressions, so they are safe to run twice. A NULL state gives NULL everywhere.

-- True when the BLOB is HLL_8 in HLL mode, complete. CASE, because AND does not keep its right side from
-- being computed where the left is false.
CREATE OR REPLACE MACRO hll_is_hll_8(hll) AS
    CASE
        WHEN hll[1:3] = '\x0A\x01\x07'::BLOB AND hll[8:8] = '\x0A'::BLOB
             AND hll[4:4] BETWEEN '\x04'::BLOB AND '\x15'::BLOB
            THEN octet_length(hll) = 40 + (1 << hll[4:4]::BIT::INTEGER)
        ELSE false
    END;

-- What an unreadable BLOB looks like, for a person.
CREATE OR REPLACE MACRO hll_describe(hll) AS
    CASE
        WHEN octet_length(hll) < 8 OR hll[2:3] <> '\x01\x07'::BLOB
            THEN 'not an Apache DataSketches HLL sketch: ' || octet_length(hll) || ' bytes beginning '
                 || hex(hll[1:8])
        ELSE 'Apache DataSketches '
             || ['HLL_4', 'HLL_6', 'HLL_8', 'unknown type'][1 + ((hll[8:8]::BIT::INTEGER >> 2) & 3)]
             || ' in '
             || ['LIST', 'SET', 'HLL', 'unknown'][1 + (hll[8:8]::BIT::INTEGER & 3)]
             || ' mode, lg_k ' || hll[4:4]::BIT::INTEGER
             || ', ' || octet_length(hll) || ' bytes'
    END;

CREATE OR REPLACE MACRO hll_refuse(hll, why) AS
    error('HLL state refused: ' || why || ' (found: ' || hll_describe(hll)
          || '). Write states with hll_state(), or with an Apache DataSketches library as an HLL sketch.');

-- Register bytes of a state: one byte a register, in slot order. Their values are not checked.
CREATE OR REPLACE MACRO hll_bytes(hll) AS
    list_transform([hll::BLOB], lambda state: CASE
        WHEN hll_is_hll_8(state) THEN state[41:]
        WHEN state IS NOT NULL THEN hll_refuse(state, 'only whole HLL_8 in HLL mode is taken here; hll_read(hll) makes it of any other sketch')::BLOB
    END)[1];

-- Precision of a state: it has 2^lg_k registers.
CREATE OR REPLACE MACRO hll_lg_k(hll) AS
    length(bin(octet_length(hll_bytes(hll)))) - 1;
