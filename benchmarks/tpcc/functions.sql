-- The five transactions of TPC-C (clause 2), each as one call. Rows of stock are locked in the order of their items, so
-- that new orders do not block each other in a circle.
SET search_path = tpcc;

CREATE FUNCTION number(low int, high int) RETURNS int LANGUAGE sql VOLATILE AS
$$ SELECT low + floor(random() * (high - low + 1))::int $$;

-- NURand of clause 2.1.6, with the same constant everywhere.
CREATE FUNCTION skewed(a int, low int, high int) RETURNS int LANGUAGE sql VOLATILE AS
$$ SELECT ((tpcc.number(0, a) | tpcc.number(low, high)) + 7) % (high - low + 1) + low $$;

CREATE FUNCTION last_name(n int) RETURNS text LANGUAGE plpgsql IMMUTABLE AS $$
DECLARE
    parts CONSTANT text[] := '{BAR,OUGHT,ABLE,PRI,PRES,ESE,ANTI,CALLY,ATION,EING}';
BEGIN
    RETURN parts[n / 100 + 1] || parts[n / 10 % 10 + 1] || parts[n % 10 + 1];
END $$;

-- Any warehouse but this one, if there is another.
CREATE FUNCTION other_warehouse(w int) RETURNS int LANGUAGE sql STABLE AS
$$ SELECT coalesce((SELECT w_id FROM tpcc.warehouse WHERE w_id <> w ORDER BY random() LIMIT 1), w) $$;

-- A customer's number: of 100, 60 give their last name, and the middle one of that name is taken (2.5.1.2).
CREATE FUNCTION some_customer(w int, d int) RETURNS int LANGUAGE plpgsql AS $$
DECLARE
    found int[];
BEGIN
    IF number(1, 100) <= 60 THEN
        found := ARRAY(SELECT c_id FROM customer
                       WHERE c_w_id = w AND c_d_id = d AND c_last = last_name(skewed(255, 0, 999)) ORDER BY c_first);
        IF cardinality(found) > 0 THEN
            RETURN found[(cardinality(found) + 1) / 2];
        END IF;
    END IF;
    RETURN skewed(1023, 1, 3000);
END $$ SET search_path = tpcc;

CREATE PROCEDURE new_order(w int, d int) LANGUAGE plpgsql AS $$
DECLARE
    lines int := tpcc.number(5, 15);
    customer_id int := tpcc.skewed(1023, 1, 3000);
    invalid boolean := tpcc.number(1, 100) = 1;
    all_local int := 1;
    order_id int;
    supply int;
    quantity int;
    price numeric;
    discount numeric;
    dist text;
    each record;
BEGIN
    SELECT c_discount INTO discount FROM tpcc.customer, tpcc.warehouse
        WHERE w_id = w AND c_w_id = w AND c_d_id = d AND c_id = customer_id;
    UPDATE tpcc.district SET d_next_o_id = d_next_o_id + 1 WHERE d_w_id = w AND d_id = d
        RETURNING d_next_o_id - 1 INTO order_id;
    INSERT INTO tpcc.orders VALUES (w, d, order_id, customer_id, now(), NULL, lines, 1);
    INSERT INTO tpcc.new_order VALUES (w, d, order_id);
    FOR each IN SELECT n, tpcc.skewed(8191, 1, 100000) item FROM generate_series(1, lines) n ORDER BY 2 LOOP
        supply := CASE WHEN tpcc.number(1, 100) = 1 THEN tpcc.other_warehouse(w) ELSE w END;
        all_local := CASE WHEN supply = w THEN all_local ELSE 0 END;
        quantity := tpcc.number(1, 10);
        SELECT i_price INTO price FROM tpcc.item WHERE i_id = each.item;
        UPDATE tpcc.stock
            SET s_quantity = s_quantity - quantity + CASE WHEN s_quantity - quantity < 10 THEN 91 ELSE 0 END,
                s_ytd = s_ytd + quantity, s_order_cnt = s_order_cnt + 1,
                s_remote_cnt = s_remote_cnt + CASE WHEN supply = w THEN 0 ELSE 1 END
            WHERE s_w_id = supply AND s_i_id = each.item RETURNING s_dist INTO dist;
        INSERT INTO tpcc.order_line
            VALUES (w, d, order_id, each.n, each.item, supply, NULL, quantity,
                    round(quantity * price * (1 - discount), 2), dist);
    END LOOP;
    IF all_local = 0 THEN
        UPDATE tpcc.orders SET o_all_local = 0 WHERE o_w_id = w AND o_d_id = d AND o_id = order_id;
    END IF;
    IF invalid THEN  -- one of a hundred asks for an item that does not exist (2.4.1.4)
        ROLLBACK;
    END IF;
END $$;

CREATE FUNCTION payment(w int, d int) RETURNS numeric LANGUAGE plpgsql AS $$
DECLARE
    amount numeric := round((1 + 4999 * random())::numeric, 2);
    away boolean := number(1, 100) > 85;
    customer_w int := CASE WHEN away THEN other_warehouse(w) ELSE w END;
    customer_d int := CASE WHEN away THEN number(1, 10) ELSE d END;
    customer_id int := some_customer(customer_w, customer_d);
    names text;
    balance numeric;
BEGIN
    UPDATE warehouse SET w_ytd = w_ytd + amount WHERE w_id = w RETURNING w_name INTO names;
    UPDATE district SET d_ytd = d_ytd + amount WHERE d_w_id = w AND d_id = d RETURNING names || '    ' || d_name INTO names;
    UPDATE customer
        SET c_balance = c_balance - amount, c_ytd_payment = c_ytd_payment + amount, c_payment_cnt = c_payment_cnt + 1,
            c_data = CASE c_credit WHEN 'BC' THEN left(concat_ws(' ', c_id, c_d_id, c_w_id, d, w, amount, c_data), 500)
                     ELSE c_data END
        WHERE c_w_id = customer_w AND c_d_id = customer_d AND c_id = customer_id RETURNING c_balance INTO balance;
    INSERT INTO history VALUES (customer_id, customer_d, customer_w, d, w, now(), amount, names);
    RETURN balance;
END $$ SET search_path = tpcc;

CREATE FUNCTION order_status(w int, d int) RETURNS numeric LANGUAGE plpgsql AS $$
DECLARE
    customer_id int := some_customer(w, d);
    order_id int;
    total numeric;
BEGIN
    PERFORM c_balance, c_first, c_middle, c_last FROM customer WHERE c_w_id = w AND c_d_id = d AND c_id = customer_id;
    SELECT o_id INTO order_id FROM orders WHERE o_w_id = w AND o_d_id = d AND o_c_id = customer_id
        ORDER BY o_id DESC LIMIT 1;
    SELECT sum(ol_amount) INTO total FROM order_line WHERE ol_w_id = w AND ol_d_id = d AND ol_o_id = order_id;
    RETURN total;
END $$ SET search_path = tpcc;

CREATE FUNCTION delivery(w int) RETURNS int LANGUAGE plpgsql AS $$
DECLARE
    carrier int := number(1, 10);
    order_id int;
    customer_id int;
    total numeric;
    delivered int := 0;
BEGIN
    FOR d IN 1..10 LOOP
        SELECT no_o_id INTO order_id FROM new_order WHERE no_w_id = w AND no_d_id = d
            ORDER BY no_o_id LIMIT 1 FOR UPDATE SKIP LOCKED;
        CONTINUE WHEN NOT FOUND;
        DELETE FROM new_order WHERE no_w_id = w AND no_d_id = d AND no_o_id = order_id;
        UPDATE orders SET o_carrier_id = carrier WHERE o_w_id = w AND o_d_id = d AND o_id = order_id
            RETURNING o_c_id INTO customer_id;
        UPDATE order_line SET ol_delivery_d = now() WHERE ol_w_id = w AND ol_d_id = d AND ol_o_id = order_id;
        SELECT sum(ol_amount) INTO total FROM order_line WHERE ol_w_id = w AND ol_d_id = d AND ol_o_id = order_id;
        UPDATE customer SET c_balance = c_balance + total, c_delivery_cnt = c_delivery_cnt + 1
            WHERE c_w_id = w AND c_d_id = d AND c_id = customer_id;
        delivered := delivered + 1;
    END LOOP;
    RETURN delivered;
END $$ SET search_path = tpcc;

CREATE FUNCTION stock_level(w int, d int) RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
    threshold int := number(10, 20);
    next_id int;
    low bigint;
BEGIN
    SELECT d_next_o_id INTO next_id FROM district WHERE d_w_id = w AND d_id = d;
    SELECT count(DISTINCT s_i_id) INTO low FROM order_line
        JOIN stock ON s_w_id = w AND s_i_id = ol_i_id
        WHERE ol_w_id = w AND ol_d_id = d AND ol_o_id >= next_id - 20 AND ol_o_id < next_id AND s_quantity < threshold;
    RETURN low;
END $$ SET search_path = tpcc;
