-- Unpacking a state into its registers.
--
-- Grain: one state in, its 2^lg_k registers out, in slot order. Register values are below 64, so the
-- register bytes are ASCII text, and splitting text is the quickest way in plain SQL to single registers: reading
-- byte by byte with t[i] took 7 ms a state at lg_k 12, get_bit 0.05 ms for each of the six bits.
--
-- Pure expressions, so they are safe to run twice.

-- Register bytes, refused where a value is above 63. 0.013 ms a state at lg_k 12.
CREATE OR REPLACE MACRO hll_checked_bytes(register_bytes) AS
    list_transform([register_bytes], lambda bytes: CASE
        WHEN bit_count(bytes::BIT & repeat('\xC0'::BLOB, octet_length(bytes))::BIT) > 0
            THEN error('HLL state refused: a register above 63 (found: damaged register bytes)')::BLOB
        ELSE bytes
    END)[1];

-- The registers as text, a character each: the cheapest form to hand to string_split(..., ''), or to
-- count one value in.
CREATE OR REPLACE MACRO hll_registers(hll) AS
    decode(hll_checked_bytes(hll_bytes(hll)));

-- The register values as a list; slot s is element s + 1. A list of bytes: of INTEGER it took twice as long.
--
--   SELECT unnest(hll_values(hll)) AS value, generate_subscripts(hll_values(hll), 1) - 1 AS slot FROM states;
CREATE OR REPLACE MACRO hll_values(hll) AS
    list_transform(string_split(hll_registers(hll), ''), lambda register: ascii(register)::UTINYINT);

-- The registers as stretches of text, {first_slot, registers}: whatever lies between them is empty. For
-- many states of few users, where it saves most of the characters; the bytes are not checked, so the
-- greatest of a slot goes through hll_register:
--
--   SELECT slot, hll_register(max(ascii(register))) AS value
--   FROM (SELECT unnest(string_split(stretch.registers, '')) AS register,
--                unnest(hll_stretch_slots(stretch))         AS slot
--         FROM (SELECT unnest(hll_stretches(hll)) AS stretch FROM states))
--   WHERE register <> chr(0)
--   GROUP BY slot;
--
-- How: the text is split at runs of 2^lg_k / 64 zeros. That bounds the stretches at 64 for any lg_k, so that
-- the lengths before each can be summed anew for each. A full state is one stretch. CPU time a state at lg_k 12,
-- with the GROUP BY: 0.04 ms at 19 used registers, 0.11 at 100, 0.2 at 4,096, where splitting all of the text
-- took 0.12, 0.15 and 0.26. Finding registers by a pattern ('\x00*[^\x00]') took 0.03 ms before any GROUP BY at
-- 19, but 0.78 at 4,096.
CREATE OR REPLACE MACRO hll_byte_stretches(register_bytes) AS
    list_transform([register_bytes], lambda bytes: list_transform(
        [greatest(8, octet_length(bytes) >> 6)],
        lambda run: list_transform(
            [string_split(decode(bytes), repeat(chr(0), run))],
            lambda pieces: list_transform(
                [list_filter(range(1, len(pieces) + 1), lambda i: pieces[i] <> '')],
                lambda places: list_transform(places, lambda place, n: {
                    'first_slot': (run * (place - 1) + coalesce(list_sum(list_transform(
                        places[1:n - 1], lambda earlier: strlen(pieces[earlier]))), 0))::INTEGER,
                    'registers': pieces[place]
                }))[1])[1])[1])[1];

CREATE OR REPLACE MACRO hll_stretches(hll) AS
    hll_byte_stretches(hll_bytes(hll));

-- Register bytes of a state of ours that is to be united at lg_k: it may have more registers, not fewer.
CREATE OR REPLACE MACRO hll_bytes_for(hll, lg_k) AS
    list_transform([hll_bytes(hll)], lambda bytes: CASE
        WHEN octet_length(bytes) < 1 << lg_k
            THEN error('HLL state of lg_k ' || (length(bin(octet_length(bytes))) - 1)
                       || ' cannot be merged into one of lg_k ' || lg_k
                       || ': it has fewer registers. Count its window again from the frames.')::BLOB
        ELSE bytes
    END)[1];

CREATE OR REPLACE MACRO hll_stretch_slots(stretch) AS
    range(stretch.first_slot, stretch.first_slot + strlen(stretch.registers)::INTEGER);

-- A register value, refused where no sketch holds one such.
CREATE OR REPLACE MACRO hll_register(value) AS
    CASE
        WHEN value > 63 THEN error('HLL state refused: a register above 63 (found: ' || value || ')')
        ELSE value
    END::UTINYINT;
