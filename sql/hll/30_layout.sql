-- The binary layout: what a BLOB holds, or an error that says why it cannot be read.
--
-- Layout: Apache DataSketches HLL, serial version 1, HLL_8 in HLL mode. 40 bytes of preamble, then one
-- byte for each of the 2^lg_k registers, each 0..63.
--   byte  0     preamble length in 4-byte words: 10
--   byte  1     serial version: 1
--   byte  2     family: 7 (HLL)
--   byte  3     lg_k: 4..21
--   byte  4     size of an auxiliary table, HLL_4 only; ignored here
--   byte  5     flags: 4 empty, 8 compact (same bytes, for HLL_8), 16 out of order, 32 see hll_estimate
--   byte  6     least register value; always 0 in HLL_8
--   byte  7     bits 0-1 mode (0 LIST, 1 SET, 2 HLL), bits 2-3 type (0 HLL_4, 1 HLL_6, 2 HLL_8): 10
--   byte  8-15  HIP accumulator (DOUBLE); void when out of order
--   byte 16-31  sum of 2^-value over registers below 32, and over the rest (two DOUBLE)
--   byte 32-35  number of registers at byte 6, that is of empty ones
--   byte 36-39  number of auxiliary entries, HLL_4 only: 0
-- Source: https://github.com/apache/datasketches-java, hll/PreambleUtil.java (the drawing at its head).
--
-- LIST, SET, HLL_4 and HLL_6 are other layouts of the same state. They are refused by hll_is_readable;
-- a reader of one adds its own test and its own branch to hll_registers.
--
-- Pure expressions, so they are safe to run twice. A NULL state gives NULL everywhere.

-- True when the BLOB is the layout above. Register bytes are checked where they are read.
CREATE OR REPLACE MACRO hll_is_readable(hll) AS
    hll[1:3] = '\x0A\x01\x07'::BLOB
    AND hll[4:4] BETWEEN '\x04'::BLOB AND '\x15'::BLOB
    AND hll[7:8] = '\x00\x0A'::BLOB
    AND octet_length(hll) = 40 + (1 << ('0x' || hex(hll[4:4]))::INTEGER);

-- What an unreadable BLOB looks like, for a person.
CREATE OR REPLACE MACRO hll_describe(hll) AS
    CASE
        WHEN octet_length(hll) < 8 OR hll[2:3] <> '\x01\x07'::BLOB
            THEN 'not an Apache DataSketches HLL sketch: ' || octet_length(hll) || ' bytes beginning '
                 || hex(hll[1:8])
        ELSE 'Apache DataSketches '
             || ['HLL_4', 'HLL_6', 'HLL_8', 'unknown type'][1 + ((('0x' || hex(hll[8:8]))::INTEGER >> 2) & 3)]
             || ' in '
             || ['LIST', 'SET', 'HLL', 'unknown'][1 + (('0x' || hex(hll[8:8]))::INTEGER & 3)]
             || ' mode, lg_k ' || ('0x' || hex(hll[4:4]))::INTEGER
             || ', ' || octet_length(hll) || ' bytes'
    END;

CREATE OR REPLACE MACRO hll_refuse(hll, why) AS
    error('HLL state refused: ' || why || ' (found: ' || hll_describe(hll)
          || '). Write states with hll_state(), or with a library as HLL_8 in HLL mode.');

-- The state itself, or an error when its layout is not one that can be read.
CREATE OR REPLACE MACRO hll_checked(hll) AS
    CASE
        WHEN hll IS NULL OR hll_is_readable(hll::BLOB) THEN hll::BLOB
        ELSE hll_refuse(hll::BLOB, 'only the HLL_8 layout in HLL mode, lg_k 4 to 21, complete, can be read')
    END;

-- Precision of a state: it has 2^lg_k registers.
CREATE OR REPLACE MACRO hll_lg_k(hll) AS
    ('0x' || hex(hll_checked(hll)[4:4]))::INTEGER;
