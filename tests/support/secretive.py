"""A plug-in whose `Config` holds secrets at every depth."""

from pydantic import BaseModel, ConfigDict, Field, SecretStr


class Account(BaseModel):
    model_config = ConfigDict(extra="forbid")
    user: str
    password: SecretStr


class Secretive:
    """Serves nothing; it is there to be configured."""

    class Config(BaseModel):
        model_config = ConfigDict(extra="forbid")
        url: str = "http://localhost"
        api_key: SecretStr | None = None
        token: SecretStr | None = Field(None, alias="access-token")
        headers: dict[str, SecretStr] = {}
        accounts: list[Account] = []
        admin: str | Account = "nobody"
        limit: float | None = 1
