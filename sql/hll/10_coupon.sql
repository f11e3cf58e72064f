-- Slot and value of a coupon.
--
-- A coupon is the 32-bit hash digest that Apache DataSketches HLL keeps of one item: six bits of value
-- above 26 bits of address. `uniq_pipeline/coupons.py` computes it; from there on everything is SQL.
-- Source: https://github.com/apache/datasketches-cpp, hll/include/HllUtil.hpp, `HllUtil::coupon`.
--
-- Pure expressions, so they are safe to run twice.

-- Register number of a coupon, 0 <= slot < 2^lg_k. INTEGER: it is a group key, and narrow keys hash faster.
CREATE OR REPLACE MACRO hll_slot(coupon, lg_k) AS
    (coupon & ((1 << lg_k) - 1))::INTEGER;

-- What the coupon offers to its register, 1..63; a register keeps the greatest value offered, 0 if none was.
CREATE OR REPLACE MACRO hll_value(coupon) AS
    (coupon >> 26)::UTINYINT;
