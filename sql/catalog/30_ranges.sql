-- Users of any range of time.
--
-- Every range is half-open, [range_from, range_to), in whole minutes: a range that begins or ends within a minute takes
-- all of that minute, and the answer says so (range_start, range_end).
--
-- A bound is a time with a time zone, or one without, which is then taken in `zone` (the pipeline's own by default):
-- '2026-11-01', '2026-11-01 10:30', DATE '2026-11-01', '2026-11-01T10:30:00Z', now() - INTERVAL 1 DAY. It must be known
-- before the query runs: a literal, a function of literals, or getvariable('name'), not a column or a subquery.
--
-- Only reads, so it is safe to run twice.

-- The instant a bound means.
CREATE OR REPLACE MACRO uniq_instant(bound, zone) AS
    CASE
        WHEN typeof(bound) = 'TIMESTAMP WITH TIME ZONE' OR regexp_matches(bound::VARCHAR, ':\d\d.*(Z|[+-]\d\d(:?\d\d)?)$')
            THEN TRY_CAST(bound AS TIMESTAMPTZ)
        ELSE timezone(zone, TRY_CAST(bound AS TIMESTAMP))
    END;

CREATE OR REPLACE MACRO uniq_microseconds(bound, zone) AS
    coalesce(
        epoch_us(uniq_instant(bound, zone)),
        error('not a time: ' || coalesce(bound::VARCHAR, 'NULL')
              || '; give one like ''2026-11-01'', ''2026-11-01 10:30'' or ''2026-11-01T10:30:00Z'''))::BIGINT;

-- The whole minutes of a range, as the text that 10_lists.sql speaks of.
CREATE OR REPLACE MACRO uniq_range(range_from, range_to, zone) AS
    list_transform(
        [[uniq_microseconds(range_from, zone) // 60000000 * 60,
          (uniq_microseconds(range_to, zone) + 59999999) // 60000000 * 60]],
        lambda ends: CASE
            WHEN ends[1] > ends[2] THEN error('the range ends before it begins: ' || range_from || ' to ' || range_to)
            ELSE uniq_key(ends[1]) || uniq_key(ends[2])
        END)[1];

-- The ends of such a text, in seconds since 1970.
CREATE OR REPLACE MACRO uniq_start_s(range) AS range[1:10]::BIGINT;
CREATE OR REPLACE MACRO uniq_end_s(range) AS range[11:20]::BIGINT;

-- The lists are handed to the lambdas below, not named in them: the body of a lambda is copied to plan it, again at each
-- level. Named inside seven nested ones, the lists of a year took 70 ms to choose from, and 16 so.

-- Whether an end of a range is within an hour whose minutes have expired, or a day whose hours have. The list has ten
-- digits each for start and end of a span, and the grain that is gone.
CREATE OR REPLACE MACRO uniq_needs_expired(bound) AS
    len(list_filter(
        string_split(uniq_expired_results(), '|'),
        lambda span: span[1:10] < bound AND bound < span[11:20]
                     AND (span[21:] = 'hour'
                          OR bound::BIGINT % 3600 <> 0
                             AND timezone('{timezone}', to_timestamp(bound::BIGINT))::TIME <> TIME '00:00'))) > 0;

CREATE OR REPLACE MACRO uniq_stored(range) AS
    CASE
        WHEN uniq_expired_results() <> '' AND (uniq_needs_expired(range[1:10]) OR uniq_needs_expired(range[11:20]))
            THEN error('the range begins or ends within a time of which only coarser windows are kept (UNIQ_RETENTION): '
                       || 'ask for whole hours, or for whole days where the hours have expired too')
        ELSE range
    END;

-- Result files that may hold a window of the smallest cover of a range.
CREATE OR REPLACE MACRO uniq_cover_files(range) AS
    list_transform(
        [[uniq_stored(range), uniq_minute_results(), uniq_hour_results(), uniq_day_results(), uniq_month_results(),
          uniq_year_results()]],
        lambda given: uniq_files('result', list_concat(
            uniq_touching(
                list_concat(uniq_near(given[2], given[1]), uniq_entries(given[3]), uniq_entries(given[4])),
                given[1]),
            uniq_inside(list_concat(uniq_entries(given[5]), uniq_entries(given[6])), given[1]))))[1];

-- What exact counts of a range are read from, {pieces, gaps}. Pieces are sets of uids, and frames where there is no set
-- or the range cuts it: all its uids, some more than once. Gaps are what cannot be counted exactly any more.
CREATE OR REPLACE MACRO uniq_pieces(range) AS
    list_transform(
        [[range, uniq_nested_sets(), uniq_other_sets(), uniq_nested_frames(), uniq_other_frames(),
          uniq_hours_without_frames()]],
        lambda given: {
            'pieces': list_concat(
                uniq_inside(list_concat(uniq_near(given[2], given[1]), uniq_entries(given[3])), given[1]),
                uniq_touching(list_concat(uniq_near(given[4], given[1]), uniq_entries(given[5])), given[1])),
            'gaps': uniq_touching(uniq_entries(given[6]), given[1])
        })[1];

CREATE OR REPLACE MACRO uniq_all_files(range) AS
    list_transform([uniq_pieces(range)], lambda found: CASE
        WHEN len(found['gaps']) > 0
            THEN error('the uids of ' || len(found['gaps']) || ' hours of this range are not kept any more')
        ELSE uniq_files('uid_set', found['pieces'])
    END)[1];

-- The files of the pieces of a range; or a file of one row without a time whose uid says why not: they hold more than
-- `most_uids` ('too many'), or some are gone ('not kept'). So the pieces are looked up once: that is 11 ms of an answer.
CREATE OR REPLACE MACRO uniq_cheap_files(range, most_uids) AS
    list_transform([uniq_pieces(range)], lambda found: CASE
        WHEN len(found['gaps']) > 0 THEN [uniq_lake() || '/empty/not_kept.parquet']
        WHEN uniq_rows(found['pieces']) > most_uids THEN [uniq_lake() || '/empty/too_many.parquet']
        ELSE uniq_files('uid_set', found['pieces'])
    END)[1];

-- An hour that a local midnight cuts is in no cover: its days take its minutes.
CREATE OR REPLACE MACRO uniq_is_cut(window_start, window_end) AS
    timezone('{timezone}', window_start)::DATE <> timezone('{timezone}', window_end - INTERVAL 1 SECOND)::DATE;

-- Windows of the smallest cover: those inside the range that no coarser one inside it contains. With a dimension, the
-- counts are those of one value, and `hidden` is the state of users who may have that value too: those of (other), or
-- all of the window where it has frames that were read before the dimension was set.
CREATE OR REPLACE MACRO uniq_cover(range_from, range_to, zone, dimension, value) AS TABLE
WITH inside AS MATERIALIZED (
    SELECT
        list_position(['minute', 'hour', 'day', 'month', 'year'], grain) AS level,
        grain, window_start, window_end, status,
        frames, unique_users, hll, by_dimension
    FROM read_parquet(uniq_cover_files(uniq_range(range_from, range_to, zone)), hive_partitioning = false),
         (SELECT uniq_range(range_from, range_to, zone) AS range)
    WHERE epoch(window_start) >= uniq_start_s(range) AND epoch(window_end) <= uniq_end_s(range)
      AND NOT (grain = 'hour' AND uniq_is_cut(window_start, window_end))
),
parts AS (
    SELECT *, uniq_entry(by_dimension, dimension, value::VARCHAR) AS entry
    FROM inside AS part
    WHERE NOT EXISTS (
        FROM inside AS whole
        WHERE whole.level > part.level
          AND whole.window_start <= part.window_start AND whole.window_end >= part.window_end
    )
)
SELECT
    grain, window_start, window_end, status,
    CASE WHEN dimension IS NULL THEN frames ELSE coalesce(entry.frames, 0) END AS frames,
    CASE
        WHEN dimension IS NULL THEN unique_users
        WHEN entry IS NOT NULL THEN entry.unique_users
        WHEN uniq_entry(by_dimension, dimension, '(other)') IS NULL THEN 0
    END                                                                      AS unique_users,
    CASE WHEN dimension IS NULL THEN hll ELSE entry.hll END                  AS hll,
    CASE
        WHEN dimension IS NULL THEN NULL
        WHEN uniq_frames_of(by_dimension, dimension) < frames THEN hll
        WHEN value::VARCHAR <> '(other)' THEN uniq_entry(by_dimension, dimension, '(other)').hll
    END                                                                      AS hidden,
    dimension IS NOT NULL AND uniq_frames_of(by_dimension, dimension) < frames AS is_unnamed
FROM parts;

-- The value that is asked for, as frames have it: as text.
CREATE OR REPLACE MACRO uniq_value(dimension, value) AS
    CASE
        WHEN value IS NULL
            THEN error('dimension ' || dimension || ' needs a value: value := ...; unique_users_by_value has all of them')
        ELSE value
    END::VARCHAR;

-- The counts of a value in a window's list, NULL where it is not there; and the frames that have the dimension.
CREATE OR REPLACE MACRO uniq_entry(by_dimension, dimension, value) AS
    list_filter(by_dimension, lambda entry: entry['dimension'] = dimension AND entry['value'] = value)[1];

CREATE OR REPLACE MACRO uniq_frames_of(by_dimension, dimension) AS
    coalesce(list_sum(list_transform(
        list_filter(by_dimension, lambda entry: entry['dimension'] = dimension),
        lambda entry: entry['frames'])), 0);

-- The uids in files that are of a range, some more than once. Rows of a set have the start of its window for an event
-- time; one without a time says why there are no others.
CREATE OR REPLACE MACRO uniq_uids_of(files, range, dimension, value) AS TABLE
SELECT uid, event_time
FROM read_parquet(files, hive_partitioning = false), (SELECT range AS ends)
WHERE event_time IS NULL
   OR (epoch(event_time) >= uniq_start_s(ends) AND epoch(event_time) < uniq_end_s(ends)
       AND (dimension IS NULL OR dimensions[dimension] = uniq_value(dimension, value)));

-- The uids of a range, each once; an error where some are not kept any more.
CREATE OR REPLACE MACRO distinct_users(range_from, range_to, zone := '{timezone}', dimension := NULL, value := NULL) AS TABLE
SELECT DISTINCT uid
FROM uniq_uids_of(
    uniq_all_files(uniq_range(range_from, range_to, zone)), uniq_range(range_from, range_to, zone), dimension, value);

-- How many different users a range had: one row. Exact where the answer is stored (the range is one window), or where
-- no more than `exact_up_to` uids have to be read for it; else an estimate, always with bounds.
CREATE OR REPLACE MACRO unique_users(
    range_from, range_to, zone := '{timezone}', dimension := NULL, value := NULL, exact_up_to := 100000
) AS TABLE
WITH asked AS (
    SELECT uniq_range(range_from, range_to, zone) AS range
),
cover AS MATERIALIZED (FROM uniq_cover(range_from, range_to, zone, dimension, value)),
totals AS (
    SELECT
        count(*)                                 AS parts,
        coalesce(sum(frames), 0)::BIGINT         AS frames,
        any_value(unique_users)                  AS stored_users,
        count(*) FILTER (is_unnamed)             AS unnamed_parts,
        bool_and(status = 'final')               AS is_final,
        uniq_cover_text(list(grain))             AS cover
    FROM cover
),
registers AS (
    SELECT
        slot::INTEGER                                                      AS slot,
        hll_register(max(ascii(register)) FILTER (NOT is_hidden))          AS own,
        hll_register(max(ascii(register)))                                 AS possible
    FROM (
        SELECT
            is_hidden,
            unnest(string_split(stretch.registers, '')) AS register,
            unnest(hll_stretch_slots(stretch))          AS slot
        FROM (
            SELECT is_hidden, unnest(hll_stretches(state)) AS stretch
            FROM (SELECT unnest([hll, hidden]) AS state, unnest([false, true]) AS is_hidden FROM cover)
        )
    )
    WHERE register <> chr(0)
    GROUP BY slot
),
estimated AS (
    SELECT
        estimate,
        hll_lower_from(estimate, used_registers, {lg_k})               AS estimate_lower,
        hll_upper_from(possible_estimate, possible_registers, {lg_k})  AS estimate_upper
    FROM (
        SELECT
            hll_estimate_registers(own, {lg_k})       AS estimate,
            count(own)                                AS used_registers,
            hll_estimate_registers(possible, {lg_k})  AS possible_estimate,
            count(possible)                           AS possible_registers
        FROM registers
    )
),
counted AS (
    SELECT
        count(DISTINCT uid)                            AS users,
        count(*)                                       AS uids,
        any_value(uid) FILTER (event_time IS NULL)     AS refused
    FROM uniq_uids_of(
        uniq_cheap_files(uniq_range(range_from, range_to, zone), exact_up_to),
        uniq_range(range_from, range_to, zone), dimension, value)
),
answers AS (
    SELECT
        *,
        parts = 1 AND unnamed_parts = 0 AND stored_users IS NOT NULL   AS is_stored,
        refused IS NULL AND unnamed_parts = 0                         AS is_counted,
        CASE
            WHEN parts = 0 THEN 0
            WHEN is_stored THEN stored_users
            WHEN is_counted THEN counted.users
        END                                                           AS exact_users
    FROM asked, totals, estimated, counted
)
SELECT
    to_timestamp(uniq_start_s(range))                         AS range_start,
    to_timestamp(uniq_end_s(range))                           AS range_end,
    coalesce(exact_users, round(estimate)::BIGINT)            AS users,
    coalesce(exact_users, estimate_lower::BIGINT)             AS users_lower,
    coalesce(exact_users, estimate_upper::BIGINT)             AS users_upper,
    exact_users IS NOT NULL                                   AS is_exact,
    estimate,
    estimate_lower,
    estimate_upper,
    frames,
    CASE WHEN is_final THEN 'final' ELSE 'provisional' END    AS status,
    cover,
    CASE
        WHEN parts = 0 THEN 'exact: no frames in this range'
        WHEN is_stored THEN 'exact: the stored count of this window'
        WHEN is_counted THEN 'exact: counted from ' || uids || ' stored uids'
        WHEN unnamed_parts > 0
            THEN 'estimate: ' || unnamed_parts || ' of its windows have frames from before ' || dimension || ' was set'
        WHEN refused = 'not kept' THEN 'estimate: the uids of some of its hours are not kept any more'
        ELSE 'estimate: an exact answer reads more than ' || exact_up_to || ' uids; see exact_up_to'
    END                                                       AS how
FROM answers;

-- '2 months, 5 days, 1 minute'
CREATE OR REPLACE MACRO uniq_cover_text(grains) AS
    array_to_string(
        list_transform(
            list_filter(['year', 'month', 'day', 'hour', 'minute'], lambda grain: list_contains(grains, grain)),
            lambda grain: list_transform(
                [len(list_filter(grains, lambda found: found = grain))],
                lambda n: n || ' ' || grain || CASE WHEN n = 1 THEN '' ELSE 's' END)[1]),
        ', ');

-- The stored windows of one grain that begin in the range.
CREATE OR REPLACE MACRO uniq_windows(grain, range_from, range_to, zone) AS TABLE
SELECT *
FROM read_parquet(
    list_transform(
        [[uniq_range(range_from, range_to, zone), CASE lower(grain)
            WHEN 'minute' THEN uniq_minute_results()
            WHEN 'hour' THEN uniq_hour_results()
            WHEN 'day' THEN uniq_day_results()
            WHEN 'week' THEN uniq_week_results()
            WHEN 'month' THEN uniq_month_results()
            WHEN 'year' THEN uniq_year_results()
            ELSE error('no such grain: ' || grain || '; there are minute, hour, day, week, month and year')
        END]],
        lambda given: uniq_files('result', uniq_overlapping(uniq_entries(given[2]), given[1])))[1],
    hive_partitioning = false),
    (SELECT uniq_range(range_from, range_to, zone) AS range)
WHERE epoch(window_start) >= uniq_start_s(range) AND epoch(window_start) < uniq_end_s(range);

-- The windows of one grain that begin in the range, with the columns of the counts views.
CREATE OR REPLACE MACRO unique_users_by(grain, range_from, range_to, zone := '{timezone}') AS TABLE
SELECT * EXCLUDE (history, by_dimension, range)
FROM uniq_windows(grain, range_from, range_to, zone)
ORDER BY window_start;

-- The same for each value of a dimension, a row a window and value; with `value`, of that one.
CREATE OR REPLACE MACRO unique_users_by_value(
    grain, dimension, range_from, range_to, zone := '{timezone}', value := NULL
) AS TABLE
SELECT * EXCLUDE (found), found.*
FROM (
    SELECT lower(grain) AS grain, window_start, window_end, status, revision, unnest(list_filter(
        by_dimension,
        lambda entry: entry['dimension'] = dimension AND (value IS NULL OR entry['value'] = value::VARCHAR))) AS found
    FROM uniq_windows(grain, range_from, range_to, zone)
)
ORDER BY window_start, found.value;
