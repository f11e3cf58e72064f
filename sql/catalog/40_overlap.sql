-- Users that two ranges have in common.
--
-- Exact, from the sets of uids, wherever those are kept. Where they are not, an estimate from the HLL states by
-- inclusion and exclusion, whose bounds are those of the parts added up: wide, where the overlap is small beside them.
--
-- Only reads, so it is safe to run twice.

-- Six rows: the users of a, of b, of both, of either, and of one but not the other.
CREATE OR REPLACE MACRO overlap(range_a, range_b, zone := '{timezone}', dimension := NULL, value := NULL) AS TABLE
WITH users AS (
    SELECT uid, event_time IS NULL AS is_refused, bool_or(side = 'a') AS in_a, bool_or(side = 'b') AS in_b
    FROM (
        SELECT uid, event_time, 'a' AS side FROM uniq_uids_of(
            uniq_cheap_files(uniq_range(range_a[1], range_a[2], zone), 9223372036854775807),
            uniq_range(range_a[1], range_a[2], zone), dimension, value)
        UNION ALL
        SELECT uid, event_time, 'b' AS side FROM uniq_uids_of(
            uniq_cheap_files(uniq_range(range_b[1], range_b[2], zone), 9223372036854775807),
            uniq_range(range_b[1], range_b[2], zone), dimension, value)
    )
    GROUP BY ALL
),
counted AS (
    SELECT
        NOT coalesce(bool_or(is_refused), false) AS is_exact,
        count(*) FILTER (in_a)                   AS a,
        count(*) FILTER (in_b)                   AS b,
        count(*) FILTER (in_a AND in_b)          AS common,
        count(*)                                 AS either_one
    FROM users
),
states AS (
    SELECT 'a' AS side, hll FROM uniq_cover(range_a[1], range_a[2], zone, dimension, value)
    UNION ALL
    SELECT 'b' AS side, hll FROM uniq_cover(range_b[1], range_b[2], zone, dimension, value)
),
registers AS MATERIALIZED (
    SELECT side, slot::INTEGER AS slot, hll_register(max(ascii(register))) AS own
    FROM (
        SELECT
            side,
            unnest(string_split(stretch.registers, '')) AS register,
            unnest(hll_stretch_slots(stretch))          AS slot
        FROM (SELECT side, unnest(hll_stretches(hll)) AS stretch FROM states)
    )
    WHERE register <> chr(0)
    GROUP BY ALL
),
estimated AS (
    SELECT
        side,
        estimate,
        hll_lower_from(estimate, used_registers, {lg_k}) AS lower,
        hll_upper_from(estimate, used_registers, {lg_k}) AS upper
    FROM (
        SELECT side, hll_estimate_registers(own, {lg_k}) AS estimate, count(*) AS used_registers
        FROM (
            FROM registers
            UNION ALL
            SELECT 'either' AS side, slot, max(own) AS own FROM registers GROUP BY slot
        )
        GROUP BY side
    )
),
bounds AS (
    SELECT
        coalesce(any_value(estimate) FILTER (side = 'a'), 0)      AS a,
        coalesce(any_value(lower) FILTER (side = 'a'), 0)         AS a_lower,
        coalesce(any_value(upper) FILTER (side = 'a'), 0)         AS a_upper,
        coalesce(any_value(estimate) FILTER (side = 'b'), 0)      AS b,
        coalesce(any_value(lower) FILTER (side = 'b'), 0)         AS b_lower,
        coalesce(any_value(upper) FILTER (side = 'b'), 0)         AS b_upper,
        coalesce(any_value(estimate) FILTER (side = 'either'), 0) AS e,
        coalesce(any_value(lower) FILTER (side = 'either'), 0)    AS e_lower,
        coalesce(any_value(upper) FILTER (side = 'either'), 0)    AS e_upper
    FROM estimated
),
answers AS (
    SELECT
        is_exact,
        unnest([
            {'part': 'a', 'n': counted.a, 'estimate': bounds.a, 'lower': a_lower, 'upper': a_upper},
            {'part': 'b', 'n': counted.b, 'estimate': bounds.b, 'lower': b_lower, 'upper': b_upper},
            {'part': 'both', 'n': common, 'estimate': bounds.a + bounds.b - e,
             'lower': a_lower + b_lower - e_upper, 'upper': least(a_upper, b_upper, a_upper + b_upper - e_lower)},
            {'part': 'either', 'n': either_one, 'estimate': e, 'lower': e_lower, 'upper': e_upper},
            {'part': 'only a', 'n': counted.a - common, 'estimate': e - bounds.b,
             'lower': e_lower - b_upper, 'upper': least(a_upper, e_upper - b_lower)},
            {'part': 'only b', 'n': counted.b - common, 'estimate': e - bounds.a,
             'lower': e_lower - a_upper, 'upper': least(b_upper, e_upper - a_lower)}
        ]) AS answer
    FROM counted, bounds
)
SELECT
    answer.part                                                                             AS part,
    CASE WHEN is_exact THEN answer.n ELSE round(greatest(answer.estimate, 0))::BIGINT END   AS users,
    CASE WHEN is_exact THEN answer.n ELSE greatest(answer.lower, 0)::BIGINT END             AS users_lower,
    CASE WHEN is_exact THEN answer.n ELSE greatest(answer.upper, 0)::BIGINT END             AS users_upper,
    is_exact,
    CASE
        WHEN is_exact THEN 'exact: from the stored uids'
        ELSE 'estimate: the uids of some of the hours are not kept any more'
    END                                                                                     AS how
FROM answers;
