"""The policy pack: the rules of `rules.py`, all mandatory. Run it with `--policy-pack policy`."""

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
            # A plan does not know the ID of an image yet that is pulled or built first. It is an ID, so the rule holds.
            # For any other rule, Pulumi reports that it cannot be checked before the update.
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
