"""The policy pack: the rules of `rules.py`, each mandatory. `make preview` asks it; so does `--policy-pack policy`."""

from collections.abc import Callable

from pulumi_policy import (
    EnforcementLevel,
    PolicyPack,
    ReportViolation,
    ResourceValidationArgs,
    ResourceValidationPolicy,
)
from pulumi_policy.proxy import UnknownValueError
from rules import RULES, Resource, Rule, by_id


def _validation(rule: Rule) -> Callable[[ResourceValidationArgs, ReportViolation], None]:
    def validate(args: ResourceValidationArgs, report: ReportViolation) -> None:
        if args.resource_type != rule.type:
            return
        resource = Resource(
            type=args.resource_type,
            name=args.name,
            stack=args.urn.split(":")[2],
            props=args.props,
            protected=args.opts.protect,
        )
        try:
            for words in rule.broken(resource):
                report(words)
        except UnknownValueError:
            # The id of an image that is pulled or built first is no name. Of anything else Pulumi says that it waits.
            if rule.broken is not by_id:
                raise

    return validate


PolicyPack(
    name="mlflow-on-docker",
    enforcement_level=EnforcementLevel.MANDATORY,
    policies=[
        ResourceValidationPolicy(name=rule.name, description=rule.description, validate=_validation(rule))
        for rule in RULES
    ],
)
