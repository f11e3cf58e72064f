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
-- {minute} and the like are filled in by uniq_pipeline/catalog.py, from names this project makes itself. All that differs
-- from one catalog to the next is in this file and in two tables; what reads it is planned once (15_entries.sql and after).
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

-- The lake's root, and the files in it that are damaged, between |.
CREATE OR REPLACE MACRO uniq_lake() AS '{lake}';
CREATE OR REPLACE MACRO uniq_damaged() AS '{damaged}';
