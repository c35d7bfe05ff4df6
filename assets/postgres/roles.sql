-- Creates the roles and the database, or corrects existing ones. start.sh runs this at every start.
-- Postgres logs the text of a failed statement, and some statements here contain a password.
SET log_min_error_statement = panic;
SET log_statement = 'none';
SET log_min_duration_statement = -1;

\set mlflow_password `cat "${SECRETS:-/run/secrets}/mlflow-password"`
\set backup_password `cat "${SECRETS:-/run/secrets}/backup-password" 2>/dev/null || true`
\set monitoring_password `cat "${SECRETS:-/run/secrets}/monitoring-password" 2>/dev/null || true`

SELECT 'CREATE ROLE mlflow LOGIN'
WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'mlflow')
\gexec
ALTER ROLE mlflow LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS PASSWORD :'mlflow_password';

SELECT 'CREATE DATABASE mlflow OWNER mlflow'
WHERE NOT EXISTS (SELECT FROM pg_database WHERE datname = 'mlflow')
\gexec
ALTER DATABASE mlflow OWNER TO mlflow;

-- By default, every role may connect to every database.
REVOKE ALL ON DATABASE mlflow, postgres, template1 FROM PUBLIC;

-- The backup's role reads all data and writes nothing. If the backup is disabled, it may not log in.
SELECT :'backup_password' <> '' AS backed_up
\gset
SELECT 'CREATE ROLE mlflow_backup'
WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'mlflow_backup')
\gexec
ALTER ROLE mlflow_backup NOLOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS PASSWORD NULL;
ALTER ROLE mlflow_backup SET default_transaction_read_only = on;
GRANT pg_read_all_data TO mlflow_backup;
GRANT CONNECT ON DATABASE mlflow TO mlflow_backup;
\if :backed_up
ALTER ROLE mlflow_backup LOGIN PASSWORD :'backup_password';
\endif

-- The exporter's role reads Postgres' own metrics and, of MLflow's data, only what the functions below count. If
-- monitoring is disabled, it may not log in.
SELECT :'monitoring_password' <> '' AS monitored
\gset
SELECT 'CREATE ROLE mlflow_monitoring'
WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'mlflow_monitoring')
\gexec
ALTER ROLE mlflow_monitoring NOLOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS PASSWORD NULL;
ALTER ROLE mlflow_monitoring SET default_transaction_read_only = on;
-- A longer query would slow down the other clients. One scrape runs two of them, and Prometheus waits for 10 s.
ALTER ROLE mlflow_monitoring SET statement_timeout = '4s';
GRANT pg_monitor, pg_use_reserved_connections TO mlflow_monitoring;
GRANT CONNECT ON DATABASE mlflow TO mlflow_monitoring;
\if :monitored
ALTER ROLE mlflow_monitoring LOGIN PASSWORD :'monitoring_password';
\endif

-- These options override any that the role mlflow may have set for its database.
\connect -reuse-previous=on "dbname=mlflow options='-c default_transaction_read_only=off -c search_path=pg_catalog'"
-- The functions run as mlflow, which owns the tables. If they ran as the superuser, anybody who replaces a table by a
-- view would get the superuser's rights. Before the first migration there is no table, and they return no rows.
CREATE SCHEMA IF NOT EXISTS monitoring;
GRANT USAGE ON SCHEMA monitoring TO mlflow_monitoring, mlflow;
-- Created anew each time, because the columns of an existing function cannot be changed.
DROP FUNCTION IF EXISTS monitoring.runs(), monitoring.totals();
CREATE FUNCTION monitoring.runs() RETURNS TABLE (status text, count bigint, started_last_hour bigint)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog AS $$
BEGIN
    IF to_regclass('public.runs') IS NULL THEN RETURN; END IF;
    RETURN QUERY
        SELECT state, count(found.status),
            count(*) FILTER (WHERE found.start_time > extract(epoch FROM now() - interval '1 hour') * 1000)
        FROM unnest(ARRAY['RUNNING', 'SCHEDULED', 'FINISHED', 'FAILED', 'KILLED']) AS state
        LEFT JOIN public.runs AS found ON found.status = state AND found.lifecycle_stage = 'active'
        GROUP BY state;
END $$;
CREATE FUNCTION monitoring.totals()
RETURNS TABLE (experiments bigint, registered_models bigint, model_versions bigint, traces bigint)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog AS $$
BEGIN
    IF to_regclass('public.trace_info') IS NULL THEN RETURN; END IF;
    RETURN QUERY SELECT
        (SELECT count(*) FROM public.experiments WHERE lifecycle_stage = 'active'),
        (SELECT count(*) FROM public.registered_models),
        (SELECT count(*) FROM public.model_versions),
        -- There can be millions: the estimate of the last ANALYZE is enough.
        (SELECT greatest(reltuples, 0)::bigint FROM pg_class WHERE oid = 'public.trace_info'::regclass);
END $$;
ALTER FUNCTION monitoring.runs() OWNER TO mlflow;
ALTER FUNCTION monitoring.totals() OWNER TO mlflow;
REVOKE ALL ON FUNCTION monitoring.runs(), monitoring.totals() FROM PUBLIC;
GRANT EXECUTE ON FUNCTION monitoring.runs(), monitoring.totals() TO mlflow_monitoring;
