-- The roles and the database of this deployment, at every start. Whatever is there already is brought into line.
-- A statement that fails is logged with its text, and this text holds a password.
SET log_min_error_statement = panic;
SET log_statement = 'none';
SET log_min_duration_statement = -1;

\set mlflow_password `cat "${SECRETS:-/run/secrets}/mlflow-password"`
\set backup_password `cat "${SECRETS:-/run/secrets}/backup-password" 2>/dev/null || true`

SELECT 'CREATE ROLE mlflow LOGIN'
WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'mlflow')
\gexec
ALTER ROLE mlflow LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS PASSWORD :'mlflow_password';

SELECT 'CREATE DATABASE mlflow OWNER mlflow'
WHERE NOT EXISTS (SELECT FROM pg_database WHERE datname = 'mlflow')
\gexec
ALTER DATABASE mlflow OWNER TO mlflow;

-- Every role may connect to every database unless told otherwise.
REVOKE ALL ON DATABASE mlflow, postgres, template1 FROM PUBLIC;

-- Reads all of it for the backup, and writes nothing. Without a backup it may not log in.
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
