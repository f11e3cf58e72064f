-- All rows of the relation `merging`, files of frames or held frames, in order of
-- event time; the rest makes the order one and the same.
SELECT topic, kafka_partition, kafka_offset, kafka_time, event_time, uid, coupon, late_by_s, event_class, dimensions
FROM merging
ORDER BY event_time, topic, kafka_partition, kafka_offset
