import json
import platform

from lamarck_jax.runtime import devices, environment


def test_the_description_of_the_machine_is_json_that_names_cores_and_versions():
  machine = json.loads(json.dumps(environment.machine()))
  assert machine['cores'] == devices.num_cores()
  assert machine['versions']['python'] == platform.python_version()
  assert {'jax', 'flax', 'numpy'} <= machine['versions'].keys()
