"""NetCDF files of maps, as tests of series read them."""

import numpy as np
from scipy.io import netcdf_file


def days(n):
    return np.arange(n, dtype=np.float64)


def write_netcdf3(path, values, time):
    with netcdf_file(str(path), "w") as file:
        for name, size in (("time", len(time)), ("zlev", 1), ("lat", values.shape[1]), ("lon", values.shape[2])):
            file.createDimension(name, size)
        file.createVariable("time", "f8", ("time",))[:] = time
        file.variables["time"].units = "days since 2000-01-01"
        file.createVariable("lat", "f4", ("lat",))[:] = np.linspace(-3, 3, values.shape[1])
        file.createVariable("lon", "f4", ("lon",))[:] = np.linspace(190, 196, values.shape[2])
        sst = file.createVariable("sst", "i2", ("time", "zlev", "lat", "lon"))
        sst.scale_factor, sst.add_offset, sst._FillValue = 0.01, 20.0, np.int16(-999)
        stored = np.round((values - 20) / 0.01)
        sst[:] = np.where(np.isnan(values), -999, stored)[:, None].astype(np.int16)
