# All commands of this project. `make` lists them. Each recipe calls a script.
STACK ?= dev
VARIABLES := SECRET STACK YES CONFIRM ARGS SERVICE FROM OLDER_THAN DRY_RUN SAFETY COPY JSON FOR POLICY CI LONG KILLS SEED PYTHON PORT ENGINELESS TARGET TO SOURCE ARTIFACTS MAP USERS \
	REQUIRE_STACK
# Refuse unknown variables: otherwise, `make up stack=acme` would ignore the variable and deploy dev.
UNKNOWN := $(filter-out $(VARIABLES),$(foreach name,$(.VARIABLES),$(if $(findstring command,$(origin $(name))),$(name))))
# The same for `stack=acme make up`. In the environment, any other name may belong to another program.
UNKNOWN += $(foreach name,stack confirm yes dry_run safety,$(if $(findstring environment,$(origin $(name))),$(name)))
$(foreach name,$(filter-out MAKEFLAGS MAKEOVERRIDES -%,$(UNKNOWN)),$(error $(name)=: no such variable$(foreach known,$(filter $(shell echo $(name) | tr a-z A-Z),$(VARIABLES)),; did you mean $(known)=?) (variables: $(VARIABLES))))
ifneq (,$(findstring command,$(origin PORT)))
ifeq (,$(filter init,$(MAKECMDGOALS)))
$(error PORT=: only make init reads it; to change the port of a stack, edit its stack file: mlflow:server: port)
endif
endif
# Refuse words that are no command: `make down acme` would stop dev before it reports them.
COMMANDS := $(shell sed -n 's/^\([a-z-]*\):.*\#\# .*/\1/p' Makefile)
# The most similar command; empty if none is similar. Only asked for a word that is none.
NEAREST = $(shell python3 -c 'import difflib, sys; print(*difflib.get_close_matches(sys.argv[1].lower(), sys.argv[2:], 1))' $(1) $(COMMANDS) 2>/dev/null)
MEANT = $(or $(if $(filter $(1),$(VARIABLES)),$(1)=1),$(addprefix make ,$(NEAREST)),STACK=$(1))
$(foreach word,$(filter-out $(COMMANDS),$(MAKECMDGOALS)),$(error $(word): no such command; did you mean $(call MEANT,$(word))? To list the commands, type: make))
export TO SOURCE ARTIFACTS MAP USERS SECRET STACK YES CONFIRM ARGS SERVICE FROM TARGET OLDER_THAN DRY_RUN SAFETY COPY JSON FOR POLICY PORT

RUN := @sh operations/bootstrap.sh# If this file has Windows line endings (CRLF), the script reports it.

.DEFAULT_GOAL := help
.PHONY: help init up preview drift down destroy status logs open url images env client password scrape authority doctor backup backups restore drill gc import export upgrade upgrade-postgres encrypt rotate prune pin test bench docs lock

help: ## list the commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-16s %s\n", $$1, $$2}' Makefile
	@echo "  STACK=dev|staging|prod (now: $(STACK))  YES=1 approves a change that deletes nothing  ARGS= is passed to pulumi, or to pytest"

init: ## create the stack file of a stack of your own: STACK=acme PORT=5055
	$(RUN) init

up: ## check, plan, deploy, print the URL
	$(RUN) up

preview: ## print what `make up` would change, as Markdown; COPY=1 plans a copy of the stack without secrets and state
	$(RUN) preview

drift: ## print the differences between the Docker host and the settings
	$(RUN) drift

down: ## stop the stack, keep the data
	$(RUN) down

destroy: ## delete the stack and all its data; asks for the stack's name (CONFIRM=)
	$(RUN) destroy

status: ## print services, health, versions, sizes and endpoints; JSON=1 for programs
	$(RUN) status

logs: ## print the last log lines of every service, or more lines of SERVICE=
	$(RUN) logs

open: ## open MLflow in the browser
	$(RUN) open

url: ## print only the URL
	$(RUN) url

images: ## print every image of the stack
	$(RUN) images

env: ## print exports for plain pulumi: eval "$(make -s env)"
	$(RUN) env

client: ## print exports for MLflow's client: eval "$(make -s client)"
	$(RUN) client

authority: ## print the certificate that an existing Traefik has to trust
	$(RUN) authority

password: ## print only the password for MLflow clients
	$(RUN) password

scrape: ## print the scrape configuration for a Prometheus that you operate already, with passwords
	$(RUN) scrape

doctor: ## report problems, and the commands that fix them
	$(RUN) doctor

backup: ## take a backup now
	$(RUN) backup

backups: ## list the backups
	$(RUN) backups

restore: ## replace the data with a backup: FROM=latest or an ID; DRY_RUN=1 only reports what would happen
	$(RUN) restore

drill: ## restore the newest backup into a throw-away database, and compare it with the backup
	$(RUN) drill

gc: ## permanently delete data that users deleted more than OLDER_THAN=30d ago; asks for the stack's name (CONFIRM=)
	$(RUN) gc

import: ## copy the data of an old MLflow into the stack, and compare: SOURCE=<its .env, SQLite file or mlruns>, DRY_RUN=1
	$(RUN) import

export: ## copy database and artifacts to another Postgres and S3, such as a cluster's: TARGET=<file>, DRY_RUN=1
	$(RUN) export

upgrade: ## list newer versions of MLflow and the images, and write them if told to; SERVICE= names one; DRY_RUN=1 only lists
	$(RUN) upgrade

upgrade-postgres: ## move the database to another major version of Postgres: TO=19; the old volume stays; DRY_RUN=1
	$(RUN) upgrade-postgres

encrypt: ## encrypt the artifacts that were there before mlflow:objectStore.encryption; DRY_RUN=1 only counts them
	$(RUN) encrypt

rotate: ## new values for the secrets, proved: SECRET=<key> or all (default); DRY_RUN=1 only reports what would restart
	$(RUN) rotate

prune: ## delete images of earlier versions that nothing uses
	$(RUN) prune

pin: ## write the missing digests of images into the stack file
	$(RUN) pin

test: ## install, lint, check types, run the tests that this machine can run; CI=1 includes those of CI, LONG=1 all
	$(RUN) check

bench: ## measure a stack of its own beside a plain set-up of the same images (10 minutes); deletes both
	$(RUN) bench

docs: ## generate the settings reference from the models
	@.venv/bin/python -m operations.reference

lock: ## update the locked requirements
	@sh operations/lock.sh
