\set w random(1, :scale)
\set d random(1, 10)
SELECT tpcc.order_status(:w, :d);
