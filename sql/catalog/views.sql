-- The views of the catalog: exactly the files the ledger names, and nothing a folder listing would add.
--
-- DDL takes no bound values, so the lists of files stand where {frames} and the like are: written by
-- uniq_pipeline/catalog.py as quoted literals, from names this project makes itself.
-- Tables that are there already: admitted (topic, kafka_partition, kafka_offset), batches.
-- Safe to run twice: it is only ever run on an empty database.

CREATE VIEW frames AS
SELECT topic, kafka_partition, kafka_offset, kafka_time, event_time, uid, coupon, late_by_s
FROM read_parquet({frames}, hive_partitioning = false);

CREATE VIEW held_frames AS
SELECT topic, kafka_partition, kafka_offset, kafka_time, event_time, uid, coupon, late_by_s, event_class
FROM read_parquet({held}, hive_partitioning = false)
ANTI JOIN admitted USING (topic, kafka_partition, kafka_offset);

CREATE VIEW quarantine AS
SELECT topic, kafka_partition, kafka_offset, kafka_time, reason, detail, payload
FROM read_parquet({quarantine}, hive_partitioning = false);

CREATE VIEW minute_counts AS SELECT * FROM read_parquet({minute}, hive_partitioning = false);
CREATE VIEW hour_counts AS SELECT * FROM read_parquet({hour}, hive_partitioning = false);
CREATE VIEW day_counts AS SELECT * FROM read_parquet({day}, hive_partitioning = false);
CREATE VIEW week_counts AS SELECT * FROM read_parquet({week}, hive_partitioning = false);
CREATE VIEW month_counts AS SELECT * FROM read_parquet({month}, hive_partitioning = false);
CREATE VIEW year_counts AS SELECT * FROM read_parquet({year}, hive_partitioning = false);

-- Frames by how far behind the event watermark they came; 0 is on time.
CREATE VIEW late_histogram AS
SELECT late_by_s, count(*) AS frames
FROM frames
GROUP BY late_by_s
ORDER BY late_by_s;
