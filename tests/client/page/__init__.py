import pytest

pytest.register_assert_rewrite("tests.client.page.browser")
