-- Estimates and bounds.
--
-- Ertl's improved raw estimator: O. Ertl, "New cardinality estimation algorithms for HyperLogLog
-- sketches", arXiv:1702.01284, algorithm 6. It needs no bias tables, holds from 0 to 2^60 uids, and depends
-- on the registers alone, so it holds after any union. It reads
--   alpha * m^2 / (m sigma(C0/m) + sum of C_k 2^-k for 1 <= k <= q + m tau(1 - C_{q+1}/m) 2^-q),
-- C_k the number of registers at k, q = 62. The sum over all k is kept in the preamble of a state, and so
-- is C_0, so an estimate takes no histogram; checking the bytes is most of its cost.
--
-- Pure expressions and one aggregate, so they are safe to run twice.

-- sigma(x) = x + sum of x^(2^j) 2^(j-1), j >= 1. The slowest case is x = 1 - 2^-21 (lg_k 21, one register
-- used): x^(2^27) is below 1e-27 there, so 30 terms are all that a DOUBLE can hold.
CREATE OR REPLACE MACRO hll_sigma(x) AS
    x + list_sum(list_transform(range(1, 31), lambda j: pow(x, pow(2, j)) * pow(2, j - 1)));

-- tau(x) = (1 - x - sum of (1 - x^(2^-j))^2 2^-j) / 3. Only a register at 63 brings it in, which takes
-- about 2^62 uids or a damaged state. The terms fall eightfold, so 20 are enough.
CREATE OR REPLACE MACRO hll_tau(x) AS
    CASE
        WHEN x <= 0 OR x >= 1 THEN 0.0
        ELSE (1 - x - list_sum(list_transform(range(1, 21),
            lambda j: pow(1 - pow(x, pow(2, -j)), 2) * pow(2, -j)))) / 3
    END;

-- Estimate from what a histogram of registers comes down to. inverse_sum is the sum of 2^-value over all
-- 2^lg_k registers (empty ones add 1 each); full_registers counts those at 63.
CREATE OR REPLACE MACRO hll_estimate_from(lg_k, empty_registers, inverse_sum, full_registers := 0) AS
    CASE
        WHEN lg_k IS NULL THEN NULL
        WHEN empty_registers = 1 << lg_k THEN 0.0::DOUBLE
        ELSE greatest(
            ((1 << lg_k) - empty_registers)::DOUBLE,
            pow(4, lg_k) / (2 * ln(2)) / (
                (1 << lg_k) * hll_sigma(empty_registers / (1 << lg_k))
                + (inverse_sum - empty_registers - full_registers * pow(2, -63))
                + (1 << lg_k) * hll_tau(1 - full_registers / (1 << lg_k)) * pow(2, -62)))
    END;

-- Estimate straight from registers in hand, an aggregate: one row for each register, empty ones may be
-- missing. Saves packing a state only to read it.
--
--   SELECT minute, hll_estimate_registers(value, 12) FROM registers GROUP BY minute;
CREATE OR REPLACE MACRO hll_estimate_registers(value, lg_k) AS
    hll_estimate_from(
        lg_k,
        hll_empty_registers(value, lg_k),
        hll_low_sum(value) / pow(2, 31) + ((1 << lg_k) - count(value)) + hll_high_sum(value) / pow(2, 63),
        count(value) FILTER (value = 63));

-- What an estimate reads of a state: {lg_k, used, inverse_sum, full}. `used` counts registers that are not
-- 0, `full` those at 63.
--
-- Flag 32 of the preamble means "sums not kept up" in a state written by the Java union, "allocated at full size" in
-- one written by C++: there the registers are read. Anywhere else, a preamble that cannot be true is refused. One
-- expression over lists of one, without a subquery: a correlated one takes 18 ms to plan by itself.
CREATE OR REPLACE MACRO hll_summary(hll) AS
    list_transform([list_transform([list_transform([hll::BLOB], lambda state: {
        'state': state,
        'registers': hll_registers(state)
    })[1]], lambda opened: {
        'state': opened.state,
        'lg_k': length(bin(strlen(opened.registers))) - 1,
        'used': hll_used(encode(opened.registers)),
        'full': strlen(opened.registers) - strlen(replace(opened.registers, chr(63), '')),
        'empty': CASE WHEN opened.state[7:7] = '\x00'::BLOB THEN hll_integer(hex(opened.state[33:36])) END,
        'inverse_sum': CASE
            WHEN opened.state[6:6]::BIT::INTEGER & 32 = 0
                THEN hll_double(hex(opened.state[17:24])) + hll_double(hex(opened.state[25:32]))
            ELSE list_sum(list_transform(string_split(opened.registers, ''), lambda r: pow(2, -ascii(r))))
        END
    })[1]], lambda found: CASE
        WHEN found.state IS NULL THEN NULL
        WHEN found.state[6:6]::BIT::INTEGER & 32 = 0 AND found.used + found.empty <> 1 << found.lg_k
             OR found.inverse_sum NOT BETWEEN (1 << found.lg_k) - found.used + found.used * pow(2, -63)
                                      AND (1 << found.lg_k) - found.used / 2
            THEN hll_refuse(found.state, 'its preamble and its registers contradict each other')
        ELSE found
    END)[1];

-- Distinct uids behind a state (DOUBLE). 0 for an empty state, NULL for NULL.
--
--   SELECT hll_estimate(hll_union(hll)), hll_lower(hll_union(hll)), hll_upper(hll_union(hll)) FROM day_counts;
CREATE OR REPLACE MACRO hll_estimate(hll) AS
    list_transform([hll_summary(hll)], lambda summary: hll_estimate_from(
        summary.lg_k, (1 << summary.lg_k) - summary.used, summary.inverse_sum, summary.full))[1];

-- Standard error over estimate, for states that may be the result of a union: 1.04 / sqrt(2^lg_k).
CREATE OR REPLACE MACRO hll_relative_standard_error(lg_k) AS
    1.04 / sqrt(pow(2, lg_k));

-- Bounds at num_std_devs standard deviations, rounded outwards to whole uids: below about 30 uids a single
-- collision is more than the relative error allows for. The estimate is divided by 1 +- error, as in the
-- DataSketches library, since the error is relative to the truth. The lower bound is never below the number
-- of registers in use: a uid touches one register, so there are at least that many uids. An empty state
-- has seen no uid: 0 and 0. The upper bound is infinite where num_std_devs errors reach the estimate,
-- which takes 4 of them at lg_k 4. With few registers the estimator leans high, by about 1.2 / 2^lg_k
-- (7% at lg_k 4, 0.03% at 12; the paper's alpha is that of infinitely many), so the lower bound allows for it.
--
--   SELECT hll_lower_from(estimate, used_registers, 12) FROM (registers in hand; see hll_estimate_registers);
CREATE OR REPLACE MACRO hll_lower_from(estimate, used_registers, lg_k, num_std_devs := 2) AS
    CASE
        WHEN used_registers = 0 THEN 0.0::DOUBLE
        ELSE greatest(
            used_registers::DOUBLE,
            floor(estimate / (1 + num_std_devs * hll_relative_standard_error(lg_k) + 1.2 / (1 << lg_k))))
    END;

CREATE OR REPLACE MACRO hll_upper_from(estimate, used_registers, lg_k, num_std_devs := 2) AS
    CASE
        WHEN used_registers = 0 THEN 0.0::DOUBLE
        WHEN num_std_devs * hll_relative_standard_error(lg_k) >= 1 THEN 'infinity'::DOUBLE
        ELSE ceil(estimate / (1 - num_std_devs * hll_relative_standard_error(lg_k)))
    END;

CREATE OR REPLACE MACRO hll_lower(hll, num_std_devs := 2) AS
    list_transform([hll_summary(hll)], lambda summary: hll_lower_from(
        hll_estimate_from(summary.lg_k, (1 << summary.lg_k) - summary.used, summary.inverse_sum, summary.full),
        summary.used, summary.lg_k, num_std_devs := num_std_devs))[1];

CREATE OR REPLACE MACRO hll_upper(hll, num_std_devs := 2) AS
    list_transform([hll_summary(hll)], lambda summary: hll_upper_from(
        hll_estimate_from(summary.lg_k, (1 << summary.lg_k) - summary.used, summary.inverse_sum, summary.full),
        summary.used, summary.lg_k, num_std_devs := num_std_devs))[1];
