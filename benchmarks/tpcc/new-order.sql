\set w random(1, :scale)
\set d random(1, 10)
CALL tpcc.new_order(:w, :d);
