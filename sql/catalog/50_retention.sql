-- Who came back: cohorts, new and returning users.
--
-- A cohort is the users whose first window, since `since`, is this one. Windows are those of the counts views, of the
-- pipeline's own time zone; those that the range touches are taken whole. Exact, from the sets of uids; where those are
-- not kept any more, one row with NULLs says so: what sketches say of overlaps of overlaps is worth nothing.
--
-- Only reads, so it is safe to run twice.

-- Windows of a grain are cut in this zone.
CREATE OR REPLACE MACRO uniq_zone_of(grain) AS
    CASE
        WHEN lower(grain) = 'hour' THEN 'UTC'
        WHEN lower(grain) IN ('day', 'week', 'month', 'year') THEN '{timezone}'
        ELSE error('no such grain: ' || grain || '; there are hour, day, week, month and year')
    END;

CREATE OR REPLACE MACRO uniq_step(grain) AS
    CASE lower(grain)
        WHEN 'hour' THEN INTERVAL 1 HOUR
        WHEN 'day' THEN INTERVAL 1 DAY
        WHEN 'week' THEN INTERVAL 7 DAY
        WHEN 'month' THEN INTERVAL 1 MONTH
        WHEN 'year' THEN INTERVAL 1 YEAR
    END;

-- First instant of the window of a grain that holds an instant, and of the next one.
CREATE OR REPLACE MACRO uniq_window_start(grain, instant) AS
    timezone(uniq_zone_of(grain), date_trunc(grain, timezone(uniq_zone_of(grain), instant)));

CREATE OR REPLACE MACRO uniq_window_end(grain, instant) AS
    timezone(uniq_zone_of(grain), date_trunc(grain, timezone(uniq_zone_of(grain), instant)) + uniq_step(grain));

-- The whole windows that a range touches, as uniq_range gives them.
CREATE OR REPLACE MACRO uniq_windows_range(grain, range_from, range_to, zone) AS
    uniq_range(
        uniq_window_start(grain, uniq_instant(range_from, zone)),
        uniq_window_end(grain, uniq_instant(range_to, zone) - INTERVAL 1 MICROSECOND),
        'UTC');

-- The longest window of a grain, in seconds, with a clock change in it. Weeks are put together from days.
CREATE OR REPLACE MACRO uniq_longest(grain) AS
    CASE lower(grain)
        WHEN 'hour' THEN 3600
        WHEN 'day' THEN 90000
        WHEN 'week' THEN 90000
        WHEN 'month' THEN 2682000
        ELSE 31626000
    END;

-- Whether something no coarser than `longest` seconds, inside the range, answers for an entry.
CREATE OR REPLACE MACRO uniq_is_superfluous(entry, range, longest) AS
    entry[21:30] >= range[1:10] AND entry[31:40] <= range[11:20]
    AND entry[31:40]::BIGINT - entry[21:30]::BIGINT <= longest;

-- Sets and frames of a range, none coarser than the grain, and what is not kept: {pieces, gaps}, as uniq_pieces.
CREATE OR REPLACE MACRO uniq_pieces_of(grain, range) AS
    list_transform(
        [[range, uniq_nested_sets(), uniq_other_sets(), uniq_nested_frames(), uniq_other_frames(),
          uniq_hours_without_frames()]],
        lambda given: {
            'pieces': list_filter(
                list_concat(
                    list_filter(
                        list_concat(uniq_entries(given[2]), uniq_entries(given[3])),
                        lambda entry: entry >= given[1][1:10] AND entry < given[1][11:20]
                                      AND entry[11:20] <= given[1][11:20]
                                      AND entry[11:20]::BIGINT - entry[1:10]::BIGINT <= uniq_longest(grain)),
                    uniq_overlapping(list_concat(uniq_entries(given[4]), uniq_entries(given[5])), given[1])),
                lambda entry: NOT uniq_is_superfluous(entry, given[1], uniq_longest(grain))),
            'gaps': list_filter(
                uniq_overlapping(uniq_entries(given[6]), given[1]),
                lambda entry: NOT uniq_is_superfluous(entry, given[1], uniq_longest(grain)))
        })[1];

-- (uid, window_start): who was there in which window. Nothing where the frames of some hour are gone.
-- No offset from UTC is finer than a quarter of an hour, so windows are found for quarters, not for rows.
CREATE OR REPLACE MACRO uniq_activity(grain, range, dimension, value) AS TABLE
WITH seen AS MATERIALIZED (
    SELECT uid, epoch(event_time)::BIGINT // 900 AS quarter
    FROM uniq_uids_of(
        list_transform([uniq_pieces_of(grain, range)], lambda found: CASE
            WHEN len(found['gaps']) = 0 THEN uniq_files('uid_set', found['pieces'])
            ELSE uniq_files('uid_set', [])
        END)[1],
        range, dimension, value)
),
quarters AS (
    SELECT quarter, uniq_window_start(grain, to_timestamp(quarter * 900)) AS window_start
    FROM (SELECT DISTINCT quarter FROM seen)
)
SELECT DISTINCT uid, window_start FROM seen JOIN quarters USING (quarter);

-- What is said where some uids are not kept; NULL where all are.
CREATE OR REPLACE MACRO uniq_not_kept(grain, range) AS
    list_transform([uniq_pieces_of(grain, range)['gaps']], lambda gaps: CASE
        WHEN len(gaps) > 0
            THEN 'no answer: the uids of ' || len(gaps) || ' hours are not kept any more, the first is '
                 || strftime(make_timestamp(gaps[1][1:10]::BIGINT * 1000000), '%Y-%m-%d %H:%M') || ' UTC'
    END)[1];

-- Cohorts by window: of the users new in cohort_start, how many were there in window_start. `age` counts windows,
-- 0 is the first. Rows with no users are left out.
CREATE OR REPLACE MACRO retention(
    cohort_grain, range_from, range_to, zone := '{timezone}', since := NULL, dimension := NULL, value := NULL
) AS TABLE
WITH activity AS MATERIALIZED (
    FROM uniq_activity(
        cohort_grain, uniq_windows_range(cohort_grain, coalesce(since, range_from), range_to, zone), dimension, value)
),
cohorts AS (
    SELECT uid, min(window_start) AS cohort_start FROM activity GROUP BY uid
),
counted AS (
    SELECT cohort_start, window_start, count(*) AS users
    FROM activity
    JOIN cohorts USING (uid)
    WHERE cohort_start >= to_timestamp(uniq_start_s(uniq_windows_range(cohort_grain, range_from, range_to, zone)))
    GROUP BY ALL
),
answers AS (
    SELECT
        cohort_start,
        window_start,
        date_diff(cohort_grain, timezone(uniq_zone_of(cohort_grain), cohort_start),
                  timezone(uniq_zone_of(cohort_grain), window_start))                        AS age,
        users,
        first_value(users) OVER (PARTITION BY cohort_start ORDER BY window_start)            AS cohort_users
    FROM counted
)
SELECT *, users / cohort_users AS share, 'exact: from the stored uids' AS how
FROM answers
UNION ALL
SELECT NULL, NULL, NULL, NULL, NULL, NULL, how
FROM (SELECT uniq_not_kept(
        cohort_grain, uniq_windows_range(cohort_grain, coalesce(since, range_from), range_to, zone)) AS how)
WHERE how IS NOT NULL
ORDER BY cohort_start, window_start;

-- Users by window: new ones, those seen in an earlier window, those seen in the window before (retained), and those of
-- the window before that are missing (lost).
CREATE OR REPLACE MACRO new_and_returning(
    grain, range_from, range_to, zone := '{timezone}', since := NULL, dimension := NULL, value := NULL
) AS TABLE
WITH activity AS MATERIALIZED (
    FROM uniq_activity(grain, uniq_windows_range(grain, coalesce(since, range_from), range_to, zone), dimension, value)
),
visits AS (
    SELECT
        window_start,
        lag(window_start) OVER (PARTITION BY uid ORDER BY window_start) AS earlier
    FROM activity
),
counted AS (
    SELECT
        window_start,
        count(*)                                                                   AS users,
        count(*) FILTER (earlier IS NULL)                                          AS new_users,
        count(*) FILTER (earlier IS NOT NULL)                                      AS returning_users,
        count(*) FILTER (uniq_window_end(grain, earlier) = window_start)           AS retained_users
    FROM visits
    GROUP BY window_start
),
answers AS (
    SELECT
        *,
        CASE
            WHEN uniq_window_end(grain, lag(window_start) OVER (ORDER BY window_start)) = window_start
                THEN lag(users) OVER (ORDER BY window_start) - retained_users
            ELSE 0
        END AS lost_users
    FROM counted
)
SELECT *, 'exact: from the stored uids' AS how
FROM answers
WHERE window_start >= to_timestamp(uniq_start_s(uniq_windows_range(grain, range_from, range_to, zone)))
UNION ALL
SELECT NULL, NULL, NULL, NULL, NULL, NULL, how
FROM (SELECT uniq_not_kept(
        grain, uniq_windows_range(grain, coalesce(since, range_from), range_to, zone)) AS how)
WHERE how IS NOT NULL
ORDER BY window_start;
