import brats_ldm_client


def test_public_names() -> None:
    names = [
        "PRESETS",
        "TLS",
        "AccessDenied",
        "AsyncClient",
        "BratsLDMError",
        "Cancelled",
        "Client",
        "DeadlineExceeded",
        "EngineError",
        "Generation",
        "InvalidRequest",
        "MissingPackage",
        "ModelInfo",
        "Progress",
        "ProtocolError",
        "QueueInfo",
        "Request",
        "Rows",
        "Sampling",
        "ServerError",
        "ServerInfo",
        "ServerUnavailable",
        "Slice",
        "TensorInfo",
        "Transport",
        "WeightsChanged",
    ]
    assert brats_ldm_client.__all__ == names == sorted(names, key=lambda name: (not name.isupper(), name))
    assert all(isinstance(getattr(brats_ldm_client, name), type) for name in names if name != "PRESETS")
    assert set(names) <= set(dir(brats_ldm_client))


def test_every_error_has_the_one_root() -> None:
    errors = [getattr(brats_ldm_client, name) for name in brats_ldm_client.__all__]
    errors = [error for error in errors if isinstance(error, type) and issubclass(error, Exception)]
    assert len(errors) == 11
    assert all(issubclass(error, brats_ldm_client.BratsLDMError) for error in errors)


def test_both_clients_have_the_same_methods() -> None:
    def methods(kind: type) -> set[str]:
        return {name for name in vars(kind) if not name.startswith("_")}

    assert methods(brats_ldm_client.Client) == methods(brats_ldm_client.AsyncClient)
