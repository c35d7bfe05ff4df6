# The one door. `make` lists what there is; every recipe hands over to a script that can be read.
STACK ?= dev
VARIABLES := STACK YES CONFIRM ARGS SERVICE FROM OLDER_THAN DRY_RUN SAFETY COPY JSON FOR POLICY LONG KILLS SEED PYTHON ENGINELESS \
	REQUIRE_STACK
# A word that nothing reads would be somebody's wish that nobody heard: `make up stack=acme` would deploy dev.
UNKNOWN := $(filter-out $(VARIABLES),$(foreach name,$(.VARIABLES),$(if $(findstring command,$(origin $(name))),$(name))))
$(foreach name,$(filter-out MAKEFLAGS MAKEOVERRIDES -%,$(UNKNOWN)),$(error $(name)=: no such variable\
	$(foreach known,$(filter $(shell echo $(name) | tr a-z A-Z),$(VARIABLES)),; did you mean $(known)=?) (there are: $(VARIABLES))))
export STACK YES CONFIRM ARGS SERVICE FROM OLDER_THAN DRY_RUN SAFETY COPY JSON FOR POLICY

RUN := @sh operations/bootstrap.sh# The script itself says so where the line ends of this file are those of Windows.

.DEFAULT_GOAL := help
.PHONY: help up preview drift down destroy status logs open url images env client password scrape doctor backup backups restore drill gc prune pin test docs lock

help: ## list the verbs
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' Makefile
	@echo "  STACK=dev|staging|prod (now: $(STACK))  YES=1 answers what deletes nothing  ARGS= goes to pulumi"

up: ## check, plan, deploy, print the URL
	$(RUN) up

preview: ## what `make up` would change, as Markdown; COPY=1 plans a new stack like it, with no secret and no state
	$(RUN) preview

drift: ## what on the Docker host is not as the settings say
	$(RUN) drift

down: ## stop it, keep the data
	$(RUN) down

destroy: ## delete it with all its data; asks for the stack's name (CONFIRM=)
	$(RUN) destroy

status: ## what runs, how it is, where, how much; JSON=1 for a program
	$(RUN) status

logs: ## the last lines of every service, or many of SERVICE=
	$(RUN) logs

open: ## open it in the browser
	$(RUN) open

url: ## print the URL alone
	$(RUN) url

images: ## print every image that it runs
	$(RUN) images

env: ## exports for plain pulumi: eval "$(make -s env)"
	$(RUN) env

client: ## exports for MLflow's client: eval "$(make -s client)"
	$(RUN) client

password: ## print the password with which a client is let in, alone
	$(RUN) password

scrape: ## print what a Prometheus of your own needs, passwords included
	$(RUN) scrape

doctor: ## say what is wrong and what to type
	$(RUN) doctor

backup: ## take a backup now
	$(RUN) backup

backups: ## list the backups
	$(RUN) backups

restore: ## put a backup in the place of what is there: FROM=latest or an id; DRY_RUN=1 only says what would happen
	$(RUN) restore

drill: ## prove that the newest backup can be restored
	$(RUN) drill

gc: ## delete for ever what users deleted OLDER_THAN=30d ago; asks for the stack's name
	$(RUN) gc

prune: ## delete images of earlier versions that nothing uses
	$(RUN) prune

pin: ## look up the digests of the images that have none
	$(RUN) pin

test: ## install, lint, check types, run every ring of tests that this machine can run; LONG=1 runs the long ones, too
	$(RUN) check

docs: ## write the settings reference from the models
	@.venv/bin/python -m operations.reference

lock: ## resolve the locked requirements again
	@sh operations/lock.sh
