import IntFlashAttention
import IntFlashAttentionCUDA
import Testing

@Suite struct CUDATileSizesTests {
  private func sizes(
    _ queries: Int,
    _ keys: Int,
    heads: Int = 1,
    dimension: Int,
    value: Int? = nil,
    method: CUDAMethod = .int8,
    major: Int = 8,
    multiprocessors: Int = 108
  ) throws -> CUDATileSizes {
    let shape = try AttentionShape(
      queryHeadCount: heads,
      keyValueHeadCount: 1,
      queryLength: queries,
      keyValueLength: keys,
      headDimension: dimension,
      valueDimension: value
    )
    return CUDATileSizes(
      shape: shape,
      method: method,
      major: major,
      multiprocessorCount: multiprocessors
    )
  }

  @Test(arguments: [
    (1, 64), (64, 64), (65, 96), (96, 96), (97, 128), (128, 128), (129, 256), (256, 256),
  ])
  func dimensionsArePaddedToTheNextKernel(dimension: Int, padded: Int) throws {
    #expect(try sizes(128, 128, dimension: dimension).dimension == padded)
    #expect(try sizes(128, 128, dimension: 1, value: dimension).dimension == padded)
  }

  @Test(arguments: [1, 64, 65, 128, 129, 1000])
  func blocksCoverTheQueries(queries: Int) throws {
    let sizes = try sizes(queries, 128, heads: 3, dimension: 64)
    #expect(sizes.blockCount % 3 == 0)
    let rows = sizes.blockCount / 3 * sizes.queryBlockLength
    #expect(rows >= queries)
    #expect(rows - queries < sizes.queryBlockLength)
  }

  @Test(arguments: [1, 63, 64, 65, 512, 513, 10_000, 1 << 20], [1, 8, 132])
  func splitsCoverTheTiles(keys: Int, multiprocessors: Int) throws {
    for dimension in [64, 256] {
      let sizes = try sizes(1, keys, dimension: dimension, multiprocessors: multiprocessors)
      let tiles = (keys + sizes.tileLead + sizes.tileLength - 1) / sizes.tileLength
      #expect(sizes.splitCount * sizes.tilesPerSplit >= tiles)
      #expect((sizes.splitCount - 1) * sizes.tilesPerSplit < tiles)
      if sizes.splitCount > 1 { #expect(sizes.tilesPerSplit >= 8) }
    }
  }

  @Test func manyBlocksAreNotSplit() throws {
    #expect(try sizes(16384, 16384, heads: 16, dimension: 128).splitCount == 1)
    #expect(try sizes(1, 16384, heads: 1, dimension: 128).splitCount > 1)
  }

  /// What a block of the devices has: 99 KiB on 8.6 and 8.9, 163 KiB on 8.0, 227 KiB on 9.0.
  @Test(arguments: [64, 96, 128, 256])
  func sharedMemoryFits(dimension: Int) throws {
    for queries in [1, 128] {
      for method in [CUDAMethod.int8, .int8Paper] {
        let sizes = try sizes(queries, 4096, dimension: dimension, method: method)
        #expect(sizes.sharedByteCount <= 99 * 1024)
      }
      let hopper = try sizes(queries, 4096, dimension: dimension, major: 9)
      #expect(hopper.sharedByteCount <= 227 * 1024)
    }
  }
}
