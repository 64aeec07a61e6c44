"""Ask Vulkan for its devices, in a child process: a driver may crash the process that loads it.

Structures and numbers: https://registry.khronos.org/vulkan/specs/1.3-extensions/html/
"""

from __future__ import annotations

import ctypes
import subprocess
import sys

_PATIENCE_S = 20.0
_CPU = 4
"""VK_PHYSICAL_DEVICE_TYPE_CPU."""
_PROPERTIES_BYTES, _TYPE_AT, _NAME_AT, _NAME_BYTES = 4096, 16, 20, 256
"""VkPhysicalDeviceProperties has 824 bytes on a 64-bit system; where the device's type and name begin in it."""


def software_driver() -> str:
    """Return the name of the software driver if Vulkan has no other; empty if it has a GPU, or no driver.

    Such a driver, Mesa's llvmpipe, computes on the CPU. Takes 0.2 to 0.5 s.
    """
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-m", __name__],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_PATIENCE_S,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


class _InstanceCreateInfo(ctypes.Structure):
    _fields_ = (
        ("sType", ctypes.c_int32),
        ("pNext", ctypes.c_void_p),
        ("flags", ctypes.c_uint32),
        ("pApplicationInfo", ctypes.c_void_p),
        ("enabledLayerCount", ctypes.c_uint32),
        ("ppEnabledLayerNames", ctypes.c_void_p),
        ("enabledExtensionCount", ctypes.c_uint32),
        ("ppEnabledExtensionNames", ctypes.c_void_p),
    )


def devices() -> list[tuple[int, str]]:
    """Return type and name of each Vulkan device, with its drivers loaded. Raises OSError if there is none."""
    library = ctypes.CDLL("libvulkan.so.1")
    instance, count = ctypes.c_void_p(), ctypes.c_uint32()
    asked = _InstanceCreateInfo(sType=1)  # VK_STRUCTURE_TYPE_INSTANCE_CREATE_INFO
    if library.vkCreateInstance(ctypes.byref(asked), None, ctypes.byref(instance)):
        raise OSError("Vulkan has no driver that can be used")
    library.vkEnumeratePhysicalDevices(instance, ctypes.byref(count), None)
    handles = (ctypes.c_void_p * count.value)()
    library.vkEnumeratePhysicalDevices(instance, ctypes.byref(count), handles)
    return [_described(library, handle) for handle in handles[: count.value]]


def _described(library: ctypes.CDLL, handle: int | None) -> tuple[int, str]:
    found = ctypes.create_string_buffer(_PROPERTIES_BYTES)
    library.vkGetPhysicalDeviceProperties(ctypes.c_void_p(handle), found)
    kind = int.from_bytes(found.raw[_TYPE_AT : _TYPE_AT + 4], sys.byteorder)
    name = found.raw[_NAME_AT : _NAME_AT + _NAME_BYTES].split(b"\0")[0]
    return kind, name.decode(errors="replace")


if __name__ == "__main__":
    found = devices()
    if found and all(kind == _CPU for kind, _ in found):
        print(found[0][1])
