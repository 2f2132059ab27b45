-- The initial content (clause 4.3.3) for :warehouses warehouses. Shorter than there: a stock row has one dist text
-- instead of ten.
SET search_path = tpcc;
SELECT setseed(0.42);
INSERT INTO item
    SELECT i, 1 + floor(random() * 10000), 'item ' || i, round((1 + 99 * random())::numeric, 2),
           CASE WHEN random() < 0.1 THEN 'ORIGINAL ' ELSE '' END || md5(i::text)
    FROM generate_series(1, 100000) i;
INSERT INTO warehouse
    SELECT w, 'w' || w, 'street', 'street', 'city', 'ST', '123456789', round((0.2 * random())::numeric, 4), 300000
    FROM generate_series(1, :warehouses) w;
INSERT INTO stock
    SELECT w, i, 10 + floor(91 * random()), left(md5(i::text), 24), 0, 0, 0, md5((w + i)::text)
    FROM generate_series(1, :warehouses) w, generate_series(1, 100000) i;
INSERT INTO district
    SELECT w, d, 'd' || d, 'street', 'street', 'city', 'ST', '123456789', round((0.2 * random())::numeric, 4), 30000, 3001
    FROM generate_series(1, :warehouses) w, generate_series(1, 10) d;
-- 1000 last names, the first thousand customers have one each, the others by the non-uniform random numbers of 2.1.6.
INSERT INTO customer
    SELECT w, d, c, left(md5(c::text), 16), 'OE', last_name(CASE WHEN c <= 1000 THEN c - 1 ELSE skewed(255, 0, 999) END),
           'street', 'street', 'city', 'ST', '123456789', '0123456789012345', now(),
           CASE WHEN random() < 0.1 THEN 'BC' ELSE 'GC' END, 50000, round((0.5 * random())::numeric, 4), -10, 10, 1, 0,
           repeat(md5(c::text), 12)
    FROM generate_series(1, :warehouses) w, generate_series(1, 10) d, generate_series(1, 3000) c;
INSERT INTO history
    SELECT c, d, w, d, w, now(), 10, 'initial' FROM generate_series(1, :warehouses) w, generate_series(1, 10) d,
           generate_series(1, 3000) c;
-- Each customer has one order, in a random sequence; the last 900 of a district are not delivered.
INSERT INTO orders
    SELECT w, d, o, c, now(), CASE WHEN o <= 2100 THEN 1 + floor(10 * random()) END, 5 + floor(11 * random()), 1
    FROM generate_series(1, :warehouses) w, generate_series(1, 10) d,
         (SELECT row_number() OVER (ORDER BY random()) o, c FROM generate_series(1, 3000) c) sequence;
INSERT INTO new_order SELECT o_w_id, o_d_id, o_id FROM orders WHERE o_id > 2100;
INSERT INTO order_line
    SELECT o_w_id, o_d_id, o_id, n, 1 + floor(100000 * random()), o_w_id, CASE WHEN o_id <= 2100 THEN o_entry_d END, 5,
           CASE WHEN o_id <= 2100 THEN 0 ELSE round((0.01 + 9999 * random())::numeric, 2) END, left(md5(n::text), 24)
    FROM orders, generate_series(1, o_ol_cnt) n;
ALTER TABLE warehouse ADD PRIMARY KEY (w_id);
ALTER TABLE district ADD PRIMARY KEY (d_w_id, d_id);
ALTER TABLE customer ADD PRIMARY KEY (c_w_id, c_d_id, c_id);
ALTER TABLE new_order ADD PRIMARY KEY (no_w_id, no_d_id, no_o_id);
ALTER TABLE orders ADD PRIMARY KEY (o_w_id, o_d_id, o_id);
ALTER TABLE order_line ADD PRIMARY KEY (ol_w_id, ol_d_id, ol_o_id, ol_number);
ALTER TABLE item ADD PRIMARY KEY (i_id);
ALTER TABLE stock ADD PRIMARY KEY (s_w_id, s_i_id);
CREATE INDEX ON customer (c_w_id, c_d_id, c_last, c_first);
CREATE INDEX ON orders (o_w_id, o_d_id, o_c_id, o_id);
VACUUM ANALYZE;
