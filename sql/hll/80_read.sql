-- Reading what others write: any Apache DataSketches HLL sketch becomes a state in our own layout (30_layout.sql).
--
--   SELECT hll_estimate(hll_union(hll_read(sketch))) FROM 'sketches_of_spark.parquet';
--
-- Pure expressions, so they are safe to run twice. A NULL gives NULL everywhere.

-- Of any other layout: {width, pairs_at, pairs}, the bits of a register (0 where there are only coupons), the place
-- of the first coupon or pair (from 1), and how many there are. NULL where it is none.
CREATE OR REPLACE MACRO hll_layout(hll) AS
    CASE
        WHEN octet_length(hll) < 8 OR hll[2:3] <> '\x01\x07'::BLOB
             OR hll[4:4] NOT BETWEEN '\x04'::BLOB AND '\x15'::BLOB THEN NULL
        WHEN hll[1:1] = '\x02'::BLOB AND hll[8:8] IN ('\x00'::BLOB, '\x04'::BLOB, '\x08'::BLOB)
            THEN {'width': 0, 'pairs_at': 9, 'pairs': hll[7:7]::BIT::BIGINT}
        WHEN octet_length(hll) < 12 THEN NULL
        WHEN hll[1:1] = '\x03'::BLOB AND hll[8:8] IN ('\x01'::BLOB, '\x05'::BLOB, '\x09'::BLOB)
             AND hll[4:4] > '\x07'::BLOB
            THEN {'width': 0, 'pairs_at': 13, 'pairs': hll_integer(hex(hll[9:12]))}
        WHEN octet_length(hll) < 40 OR hll[1:1] <> '\x0A'::BLOB THEN NULL
        WHEN hll[8:8] = '\x02'::BLOB
            THEN {'width': 4, 'pairs_at': 41 + (1 << hll[4:4]::BIT::INTEGER) // 2,
                  'pairs': hll_integer(hex(hll[37:40]))}
        WHEN hll[7:8] = '\x00\x06'::BLOB
            THEN {'width': 6, 'pairs_at': 42 + (3 << hll[4:4]::BIT::INTEGER) // 4, 'pairs': 0}
    END;

-- The coupons or pairs in bytes, as entries: slot << 6 | value. Empty places of a table are left out.
CREATE OR REPLACE MACRO hll_entries(bytes, lg_k) AS
    list_transform(
        list_filter(
            list_transform(
                list_transform(range(octet_length(bytes) // 4),
                               lambda i: bytes[4 * i + 1:4 * i + 4]::BIT::UINTEGER::BIGINT),
                lambda x: ((x & 255) << 24) | ((x & 65280) << 8) | ((x >> 8) & 65280) | (x >> 24)),
            lambda coupon: coupon <> 0),
        lambda coupon: ((coupon & ((1 << lg_k) - 1)) << 6) | (coupon >> 26));

-- Register bytes of sorted entries, one a slot: the gaps between them are filled. (bitstring_agg, as in
-- hll_state, wants the number of registers as a constant.)
CREATE OR REPLACE MACRO hll_bytes_of_entries(entries, registers) AS
    list_transform([entries::BIGINT[]], lambda used: encode(
        coalesce(array_to_string(list_transform(used, lambda entry, i:
            repeat(chr(0), (entry >> 6) - 1 - CASE WHEN i = 1 THEN -1 ELSE used[i - 1] >> 6 END)
            || chr((entry & 63)::INTEGER)), ''), '')
        || repeat(chr(0), registers - 1 - coalesce(used[len(used)] >> 6, -1))))[1];

-- The same of any entries: the greatest of a slot counts.
CREATE OR REPLACE MACRO hll_bytes_of_coupons(entries, registers) AS
    list_transform([list_sort(entries::BIGINT[])], lambda sorted: hll_bytes_of_entries(
        list_filter(sorted, lambda entry, i: i = len(sorted) OR sorted[i + 1] >> 6 <> entry >> 6), registers))[1];

-- Registers of 4 or 6 bits as a list, in slot order. A register may begin in one byte and end in the next, so one
-- more byte follows the last. Bit p, low bits first, is number p ^ 7 of a BIT.
CREATE OR REPLACE MACRO hll_narrow_registers(bytes, width, registers) AS
    list_transform([(bytes || '\x00'::BLOB)::BIT], lambda bits: list_transform(
        list_transform(range(registers), lambda slot: (slot * width)::INTEGER),
        lambda p: (get_bit(bits, xor(p, 7))
                   + 2 * get_bit(bits, xor(p + 1, 7))
                   + 4 * get_bit(bits, xor(p + 2, 7))
                   + 8 * get_bit(bits, xor(p + 3, 7))
                   + CASE WHEN width = 6
                         THEN 16 * get_bit(bits, xor(p + 4, 7)) + 32 * get_bit(bits, xor(p + 5, 7))
                         ELSE 0
                     END)::UTINYINT))[1];

-- Register bytes of HLL_4 or HLL_6, NULL where exceptions and registers do not fit together or the preamble
-- counts other registers at the least value. least + 14 above 63 is left to whoever checks the register bytes.
CREATE OR REPLACE MACRO hll_widened(narrow, width, least, at_least, entries) AS
    CASE
        WHEN len(list_filter(narrow, lambda x: x = 0)) <> at_least
             OR (width = 4 AND (
                 len(list_filter(narrow, lambda x: x = 15)) <> len(entries)
                 OR list_unique(list_transform(entries::BIGINT[], lambda entry: entry >> 6)) <> len(entries)
                 OR len(list_filter(entries::BIGINT[], lambda entry:
                     narrow[(entry >> 6) + 1] <> 15 OR entry & 63 < least + 15)) > 0))
            THEN NULL
        ELSE (encode(array_to_string(list_transform(narrow, lambda x:
                  chr(CASE WHEN x = 15 AND width = 4 THEN 0 ELSE x + least END)), ''))::BIT
              | hll_bytes_of_coupons(entries, len(narrow))::BIT)::BLOB
    END;

-- Register bytes of any layout but HLL_8 in HLL mode, NULL where it is none that is whole. CPU time at lg_k 12,
-- on a busy machine: 0.08 ms of 3 coupons, 0.2 of 100, 3 to 3.5 for HLL_4 and HLL_6.
CREATE OR REPLACE MACRO hll_other_bytes(hll) AS
    list_transform([list_transform([list_transform([{
        'state': hll::BLOB,
        'lg_k': least(('0x0' || hex(hll[4:4]))::INTEGER, 21),
        'layout': hll_layout(hll::BLOB)
    }], lambda found: {
        'state': found.state,
        'registers': 1 << found.lg_k,
        'layout': found.layout,
        'whole': octet_length(found.state) - found.layout.pairs_at + 1 = CASE
            WHEN found.layout.width = 6 THEN 0
            WHEN found.layout IS NULL THEN NULL
            WHEN found.state[6:6]::BIT::INTEGER & 8 <> 0 THEN 4 * found.layout.pairs
            WHEN found.layout.width = 4 AND found.layout.pairs = 0
                THEN 4 << [2, 2, 2, 3, 3, 3, 4, 4, 5, 5, 6, 7, 8, 9, 10, 11, 12, 13][found.lg_k - 3]
            ELSE 4 << least(found.state[5:5]::BIT::INTEGER, 26)
        END,
        'entries': hll_entries(found.state[found.layout.pairs_at:], found.lg_k)
    })[1]], lambda found: {
        'state': found.state,
        'registers': found.registers,
        'layout': found.layout,
        'whole': found.whole
                 AND octet_length(found.state) >= found.layout.pairs_at - 1
                 AND len(found.entries) = found.layout.pairs
                 AND len(list_filter(found.entries, lambda entry: entry & 63 = 0)) = 0,
        'entries': found.entries,
        'narrow': CASE
            WHEN found.whole AND found.layout.width > 0 THEN hll_narrow_registers(
                found.state[41:found.layout.pairs_at - 1], found.layout.width, found.registers)
        END
    })[1]], lambda found: CASE
        WHEN found.whole AND found.layout.width = 0 THEN hll_bytes_of_coupons(found.entries, found.registers)
        WHEN found.whole THEN hll_widened(found.narrow, found.layout.width, found.state[7:7]::BIT::INTEGER,
                                          hll_integer(hex(found.state[33:36])), found.entries)
    END)[1];

-- True when the BLOB is one of the layouts above, whole. Register bytes of HLL_8 are checked where they are read.
CREATE OR REPLACE MACRO hll_is_readable(hll) AS
    list_transform([hll::BLOB], lambda state: CASE
        WHEN state IS NULL THEN NULL
        WHEN hll_is_hll_8(state) THEN true
        ELSE hll_other_bytes(state) IS NOT NULL
    END)[1];

-- The state of the same uids in the layout of hll_state. Broken bytes raise.
CREATE OR REPLACE MACRO hll_read(hll) AS
    list_transform([hll::BLOB], lambda state: CASE
        WHEN state IS NULL OR hll_is_hll_8(state) THEN state
        ELSE hll_state_of_bytes(hll_checked_bytes(coalesce(hll_other_bytes(state), hll_refuse(state,
            'only a whole, unbroken Apache DataSketches HLL_4, HLL_6 or HLL_8, lg_k 4 to 21, can be read')::BLOB)))
    END)[1];
