-- Which files count, as text, and how a range of time picks those it needs.
--
-- A table function takes only what can be computed before the query runs, so a range picks its files here, at
-- planning, by their names: a query over a day opens a dozen files of a lake that has tens of thousands. Each list
-- is one text, because that is what DuckDB plans quickly: 8,760 names as a list of literals took 50 ms to plan and
-- 330 ms to create, as one text 4 ms and 25 ms.
--
-- An entry is five numbers of ten digits and a name below the lake's root; the numbers are seconds since 1970:
--   1-10 start, 11-20 end of what the file covers; 21-30 start, 31-40 end of the span that makes it superfluous
--   where all of it is asked for, because something coarser answers (9999999999: nothing does); 41-50 rows
-- Entries are in order of their start and can be compared with a start as texts: 'entry' < 'start'. They stand
-- between |. In the lists of hours # begins another day (UTC), with two numbers before its first entry: only a range that
-- ends between them may cut a day or an hour of these.
--
-- {minute} and the like are filled in by uniq_pipeline/catalog.py, from names this project makes itself.
-- Pure expressions, so they are safe to run twice.

CREATE OR REPLACE MACRO uniq_minute_results() AS '{minute}';
CREATE OR REPLACE MACRO uniq_hour_results() AS '{hour}';
CREATE OR REPLACE MACRO uniq_day_results() AS '{day}';
CREATE OR REPLACE MACRO uniq_week_results() AS '{week}';
CREATE OR REPLACE MACRO uniq_month_results() AS '{month}';
CREATE OR REPLACE MACRO uniq_year_results() AS '{year}';

-- Frames, and sets of distinct uids: what exact counts of a range are made of. `nested` ones stand inside the set of
-- their day or hour, so only those near the ends of a range are needed; of the others, any inside it. A file of frames
-- stands twice where a local midnight cuts its hour, once for each side.
CREATE OR REPLACE MACRO uniq_nested_frames() AS '{nested_frames}';
CREATE OR REPLACE MACRO uniq_other_frames() AS '{other_frames}';
CREATE OR REPLACE MACRO uniq_nested_sets() AS '{nested_sets}';
CREATE OR REPLACE MACRO uniq_other_sets() AS '{other_sets}';

-- Hours that have counts, but no frames any more.
CREATE OR REPLACE MACRO uniq_hours_without_frames() AS '{hours_without_frames}';

-- Times of which the minutes, or the hours, are not kept any more.
CREATE OR REPLACE MACRO uniq_expired_results() AS '{expired_results}';

CREATE OR REPLACE MACRO uniq_held() AS '{held}';
CREATE OR REPLACE MACRO uniq_quarantine() AS '{quarantine}';

-- Names of files to read. An empty file comes first: it gives the columns, also where nothing else does.
CREATE OR REPLACE MACRO uniq_files(kind, entries) AS
    list_prepend('{lake}/empty/' || kind || '.parquet', list_transform(entries, lambda entry: '{lake}/' || entry[51:]));

CREATE OR REPLACE MACRO uniq_entries(list) AS
    list_filter(
        flatten(list_transform(string_split(list, '#'), lambda line: string_split(line[21:], '|'))),
        lambda entry: entry <> '');

-- The same without files that are damaged, for views: they show what the others have. A range that needs such
-- a file fails instead, and names it: an answer must not be short of something without a word.
CREATE OR REPLACE MACRO uniq_whole_files(kind, entries) AS
    CASE WHEN '{damaged}' = '|' THEN uniq_files(kind, entries)
         ELSE list_filter(uniq_files(kind, entries),
                          lambda path: NOT contains('{damaged}', '|' || path[length('{lake}/') + 1:] || '|')) END;

CREATE OR REPLACE MACRO uniq_rows(entries) AS
    coalesce(list_sum(list_transform(entries, lambda entry: entry[41:50]::BIGINT)), 0);

-- A time as ten digits, to compare with entries: from 1970 to 2286, and what is beyond is as good as those.
CREATE OR REPLACE MACRO uniq_key(seconds) AS
    printf('%010d', least(greatest(seconds, 0), 9999999998)::BIGINT);

-- A range here is one text too: its two ends as such keys, one after the other.

-- Entries whose span is all inside a range, or touches it, and that nothing coarser answers for.
CREATE OR REPLACE MACRO uniq_inside(entries, range) AS
    list_filter(entries, lambda entry: entry >= range[1:10] AND entry < range[11:20] AND entry[11:20] <= range[11:20]
                                       AND NOT (entry[21:30] >= range[1:10] AND entry[31:40] <= range[11:20]));

CREATE OR REPLACE MACRO uniq_touching(entries, range) AS
    list_filter(entries, lambda entry: entry < range[11:20] AND entry[11:20] > range[1:10]
                                       AND NOT (entry[21:30] >= range[1:10] AND entry[31:40] <= range[11:20]));

CREATE OR REPLACE MACRO uniq_overlapping(entries, range) AS
    list_filter(entries, lambda entry: entry < range[11:20] AND entry[11:20] > range[1:10]);

-- Of a list with a line a day: the entries of the days around the ends of a range, which may be cut by them. Looking at
-- days first makes that 2 ms for the hours of a year where it was 60.
CREATE OR REPLACE MACRO uniq_near(list, range) AS
    flatten(list_transform(
        list_filter(
            string_split(list, '#'),
            lambda line: line < range[1:10] AND line[11:20] > range[1:10]
                         OR line < range[11:20] AND line[11:20] > range[11:20]),
        lambda line: string_split(line[21:], '|')));
