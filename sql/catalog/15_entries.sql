-- How a range of time picks the entries it needs from the lists (10_lists.sql has their layout).
--
-- Pure expressions, so they are safe to run twice.

-- Names of files to read. An empty file comes first: it gives the columns, also where nothing else does.
CREATE OR REPLACE MACRO uniq_files(kind, entries) AS
    list_prepend(
        uniq_lake() || '/empty/' || kind || '.parquet',
        list_transform(entries, lambda entry: uniq_lake() || '/' || entry[51:]));

CREATE OR REPLACE MACRO uniq_entries(list) AS
    list_filter(
        flatten(list_transform(string_split(list, '#'), lambda line: string_split(line[21:], '|'))),
        lambda entry: entry <> '');

-- The same without files that are damaged, for views: they show what the others have. A range that needs such
-- a file fails instead, and names it: an answer must not be short of something without a word.
CREATE OR REPLACE MACRO uniq_whole_files(kind, entries) AS
    CASE WHEN uniq_damaged() = '|' THEN uniq_files(kind, entries)
         ELSE list_filter(uniq_files(kind, entries),
                          lambda path: NOT contains(uniq_damaged(), '|' || path[length(uniq_lake()) + 2:] || '|')) END;

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
