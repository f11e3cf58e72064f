-- The views of the catalog: exactly the files the ledger names, and nothing a folder listing would add.
--
-- Tables that are there already: admitted (topic, kafka_partition, kafka_offset), batches.
-- Safe to run twice: it is only ever run on an empty database. Views are planned over no files; they have all the same
-- columns over any, since the empty file of their kind comes first.

CREATE VIEW frames AS
SELECT topic, kafka_partition, kafka_offset, kafka_time, event_time, uid, coupon, late_by_s, event_class, dimensions
FROM read_parquet(
    list_distinct(
        uniq_whole_files('frames', list_concat(uniq_entries(uniq_nested_frames()), uniq_entries(uniq_other_frames())))),
    hive_partitioning = false);

CREATE VIEW held_frames AS
SELECT topic, kafka_partition, kafka_offset, kafka_time, event_time, uid, coupon, late_by_s, event_class, dimensions
FROM read_parquet(uniq_whole_files('held', uniq_entries(uniq_held())), hive_partitioning = false)
ANTI JOIN admitted USING (topic, kafka_partition, kafka_offset);

CREATE VIEW quarantine AS
SELECT topic, kafka_partition, kafka_offset, kafka_time, reason, detail, payload
FROM read_parquet(uniq_whole_files('quarantine', uniq_entries(uniq_quarantine())), hive_partitioning = false);

CREATE VIEW minute_counts AS SELECT * EXCLUDE (history, by_dimension)
FROM read_parquet(uniq_whole_files('result', uniq_entries(uniq_minute_results())), hive_partitioning = false);

CREATE VIEW hour_counts AS SELECT * EXCLUDE (history, by_dimension)
FROM read_parquet(uniq_whole_files('result', uniq_entries(uniq_hour_results())), hive_partitioning = false);

CREATE VIEW day_counts AS SELECT * EXCLUDE (history, by_dimension)
FROM read_parquet(uniq_whole_files('result', uniq_entries(uniq_day_results())), hive_partitioning = false);

CREATE VIEW week_counts AS SELECT * EXCLUDE (history, by_dimension)
FROM read_parquet(uniq_whole_files('result', uniq_entries(uniq_week_results())), hive_partitioning = false);

CREATE VIEW month_counts AS SELECT * EXCLUDE (history, by_dimension)
FROM read_parquet(uniq_whole_files('result', uniq_entries(uniq_month_results())), hive_partitioning = false);

CREATE VIEW year_counts AS SELECT * EXCLUDE (history, by_dimension)
FROM read_parquet(uniq_whole_files('result', uniq_entries(uniq_year_results())), hive_partitioning = false);

-- The counts of each value of each dimension: a row a window and value.
CREATE MACRO uniq_by_value(list) AS TABLE
SELECT * EXCLUDE (found), found.*
FROM (
    SELECT grain, window_start, window_end, status, revision, unnest(by_dimension) AS found
    FROM read_parquet(uniq_whole_files('result', uniq_entries(list)), hive_partitioning = false)
);

CREATE VIEW minute_counts_by_value AS FROM uniq_by_value(uniq_minute_results());
CREATE VIEW hour_counts_by_value AS FROM uniq_by_value(uniq_hour_results());
CREATE VIEW day_counts_by_value AS FROM uniq_by_value(uniq_day_results());
CREATE VIEW week_counts_by_value AS FROM uniq_by_value(uniq_week_results());
CREATE VIEW month_counts_by_value AS FROM uniq_by_value(uniq_month_results());
CREATE VIEW year_counts_by_value AS FROM uniq_by_value(uniq_year_results());

-- The Parquet files behind the views, for engines that read them without DuckDB.
CREATE VIEW lake_files AS
SELECT view_name, unnest(list_sort(list_distinct(paths[2:]))) AS path
FROM (VALUES
    ('frames', uniq_whole_files('frames', list_concat(
        uniq_entries(uniq_nested_frames()), uniq_entries(uniq_other_frames())))),
    ('held_frames', uniq_whole_files('held', uniq_entries(uniq_held()))),
    ('quarantine', uniq_whole_files('quarantine', uniq_entries(uniq_quarantine()))),
    ('minute_counts', uniq_whole_files('result', uniq_entries(uniq_minute_results()))),
    ('hour_counts', uniq_whole_files('result', uniq_entries(uniq_hour_results()))),
    ('day_counts', uniq_whole_files('result', uniq_entries(uniq_day_results()))),
    ('week_counts', uniq_whole_files('result', uniq_entries(uniq_week_results()))),
    ('month_counts', uniq_whole_files('result', uniq_entries(uniq_month_results()))),
    ('year_counts', uniq_whole_files('result', uniq_entries(uniq_year_results())))
) AS listed(view_name, paths);

-- Every revision of every window that is known: the current one, and those that its row remembers.
CREATE VIEW revisions AS
WITH stored AS (
    SELECT * FROM read_parquet(uniq_whole_files('result', list_concat(
        uniq_entries(uniq_minute_results()), uniq_entries(uniq_hour_results()), uniq_entries(uniq_day_results()),
        uniq_entries(uniq_week_results()), uniq_entries(uniq_month_results()), uniq_entries(uniq_year_results()))),
        hive_partitioning = false)
)
SELECT grain, window_start, window_end, revision, frames, unique_users, estimate, estimate_lower, estimate_upper,
       status, reason, computed_at, true AS is_current
FROM stored
UNION ALL
SELECT grain, window_start, window_end, old.revision, old.frames, old.unique_users, old.estimate, old.estimate_lower,
       old.estimate_upper, old.status, old.reason, old.computed_at, false AS is_current
FROM (SELECT grain, window_start, window_end, unnest(history) AS old FROM stored);

-- Records that are in no window, by minute: held frames by their own minute, quarantined ones by Kafka's.
CREATE VIEW held_counts AS
SELECT to_timestamp(epoch_us(event_time) // 60000000 * 60) AS minute, event_class, count(*) AS frames
FROM held_frames
GROUP BY ALL
ORDER BY ALL;

CREATE VIEW rejected_counts AS
SELECT to_timestamp(epoch_us(kafka_time) // 60000000 * 60) AS minute, reason, count(*) AS records
FROM quarantine
GROUP BY ALL
ORDER BY ALL;

-- Frames by how far behind the event watermark they came; 0 is on time. Held ones too, except those from the
-- future: they are behind nothing.
CREATE VIEW late_histogram AS
SELECT late_by_s, event_class, count(*) AS frames
FROM (
    SELECT late_by_s, event_class FROM frames
    UNION ALL
    SELECT late_by_s, event_class FROM held_frames WHERE event_class <> 'future'
)
GROUP BY ALL
ORDER BY ALL;
