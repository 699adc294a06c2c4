// SPDX-License-Identifier: GPL-2.0-only
/*
 * The ioctls of the soak's loop from C: the cost of the kernel alone.
 *
 * Each function returns the number of its ioctls with the expected result.
 */
#include <errno.h>
#include <stdint.h>
#include <sys/ioctl.h>

#include <linux/vfio.h>

static int map(int container, uint64_t address, uint64_t iova, uint64_t size)
{
	struct vfio_iommu_type1_dma_map argument = {
		.argsz = sizeof(argument),
		.flags = VFIO_DMA_MAP_FLAG_READ | VFIO_DMA_MAP_FLAG_WRITE,
		.vaddr = address,
		.iova = iova,
		.size = size,
	};

	return ioctl(container, VFIO_IOMMU_MAP_DMA, &argument);
}

static int unmap(int container, uint64_t iova, uint64_t size)
{
	struct vfio_iommu_type1_dma_unmap argument = {
		.argsz = sizeof(argument),
		.iova = iova,
		.size = size,
	};

	return ioctl(container, VFIO_IOMMU_UNMAP_DMA, &argument);
}

long granted(int container, uint64_t address, uint64_t iova, uint64_t size, long cycles)
{
	long good = 0;

	for (long cycle = 0; cycle < cycles; cycle++) {
		good += map(container, address, iova, size) == 0;
		good += unmap(container, iova, size) == 0;
	}
	return good;
}

long refused(int container, uint64_t address, uint64_t iova, uint64_t size, long cycles)
{
	long good = 0;

	for (long cycle = 0; cycle < cycles; cycle++)
		good += map(container, address, iova, size) < 0 && errno == EOPNOTSUPP;
	return good;
}
