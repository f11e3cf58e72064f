-- All rows of the relation `merging`, files of records quarantined on one day, in the order of their logs.
SELECT topic, kafka_partition, kafka_offset, kafka_time, reason, detail, payload
FROM merging
ORDER BY topic, kafka_partition, kafka_offset
