import CAttentionKernels
import IntFlashAttention
import Testing

@Suite struct CPUTileSizesTests {
  private func shape(heads: Int, queries: Int, keys: Int? = nil) throws -> AttentionShape {
    try AttentionShape(
      queryHeadCount: heads,
      keyValueHeadCount: 1,
      queryLength: queries,
      keyValueLength: keys ?? queries,
      headDimension: 64
    )
  }

  /// Sizes for so much work that every thread is used.
  private func sizes(heads: Int, queries: Int, keys: Int? = nil, threads: Int) throws
    -> CPUTileSizes
  {
    let shape = try shape(heads: heads, queries: queries, keys: keys)
    return CPUTileSizes(shape: shape, operationCount: 1e12, threadCount: threads)
  }

  @Test func longSequencesFillTheLargestBlock() throws {
    #expect(CPUTileSizes.largestQueryBlock == Int(INTFA_MAX_ROWS))
    #expect(try sizes(heads: 8, queries: 4096, threads: 1).queryBlockLength == 256)
    #expect(try sizes(heads: 8, queries: 4096, threads: 2).queryBlockLength == 256)
  }

  @Test func blocksShrinkUntilThereIsWorkForEveryThread() throws {
    #expect(try sizes(heads: 1, queries: 512, threads: 1).queryBlockLength == 256)
    #expect(try sizes(heads: 1, queries: 512, threads: 4).queryBlockLength == 32)
    #expect(try sizes(heads: 1, queries: 1, threads: 64).queryBlockLength == 16)
  }

  @Test func piecesAreWholeUnits() throws {
    #expect(HeadRows.sumBlock == Int(INTFA_SUM_BLOCK))
    #expect(CPUTileSizes.packUnit.isMultiple(of: Int(INTFA_PACK_UNIT)))
    #expect(CPUTileSizes.packUnit.isMultiple(of: Int(INTFA_KEY_GROUP)))
    for length in Array(0...600) + [1000, 1023, 1024, 1025, 5000, 100_000] {
      for threads in [1, 2, 7, 64] {
        let sizes = try sizes(heads: 3, queries: length, threads: threads)
        #expect(sizes.queryBlockLength.isMultiple(of: Int(INTFA_ROW_UNIT)))
        #expect((16...256).contains(sizes.queryBlockLength))
        #expect(sizes.surveyLength.isMultiple(of: HeadRows.sumBlock))
        #expect((256...1024).contains(sizes.surveyLength))
        #expect(sizes.packLength.isMultiple(of: CPUTileSizes.packUnit))
        #expect((64...1024).contains(sizes.packLength))
      }
    }
  }

  @Test func blocksCoverEveryRowOnceTheLongestFirst() throws {
    for queries in [1, 15, 16, 17, 256, 257, 300, 1000] {
      for threads in [1, 2, 8] {
        let sizes = try sizes(heads: 1, queries: queries, threads: threads)
        let count = CPUTileSizes.pieceCount(queries, sizes.queryBlockLength)
        let blocks = (0..<count).map { sizes.queryRows(ofBlock: $0, queryLength: queries) }
        #expect(blocks.reversed().flatMap { Array($0) } == Array(0..<queries))
        #expect(blocks.map(\.count) == blocks.map(\.count).sorted(by: >))
      }
    }
  }

  /// Threads that take items in order as they become free finish at about the same time.
  @Test(arguments: [1, 2, 3, 8, 32], [300, 512, 1000, 1024, 4096])
  func workIsEven(heads: Int, length: Int) throws {
    for threads in [2, 3, 4, 8] {
      let sizes = try sizes(heads: heads, queries: length, threads: threads)
      func slowest(_ items: [Int]) -> Double {
        var busy = [Int](repeating: 0, count: threads)
        for item in items {
          busy.sort()
          busy[0] += item
        }
        return Double((busy.max() ?? 0) * threads) / Double(items.reduce(0, +))
      }
      let blocks = (0..<CPUTileSizes.pieceCount(length, sizes.queryBlockLength)).flatMap { index in
        [Range<Int>](
          repeating: sizes.queryRows(ofBlock: index, queryLength: length),
          count: heads
        )
      }
      func slack(_ unit: Int, heads: Int) -> Double {
        1.1 + Double(threads * unit) / Double(heads * length)
      }
      let rows = blocks.map(\.count)
      #expect(slowest(rows) <= slack(16, heads: heads), "\(threads) threads, full")
      let pairs = blocks.map { $0.reduce(0) { $0 + $1 + 1 } }
      #expect(slowest(pairs) <= slack(16, heads: heads), "\(threads) threads, causal")
      let packs = stride(from: 0, to: length, by: sizes.packLength).map {
        min(sizes.packLength, length - $0)
      }
      #expect(
        slowest(packs + packs) <= slack(CPUTileSizes.packUnit, heads: 2),
        "\(threads) threads, keys and values"
      )
    }
  }

  @Test func smallCallsStayOnTheCallersThread() throws {
    func threads(_ heads: Int, _ length: Int, keys: Int? = nil, available: Int = 64) throws -> Int {
      let shape = try shape(heads: heads, queries: length, keys: keys)
      let operations = try AttentionDescriptor(
        shape: shape,
        recipe: Precision.int8.recipe,
        options: AttentionOptions()
      ).operationCount
      return CPUTileSizes.usefulThreadCount(
        shape: shape,
        operationCount: operations,
        available: available
      )
    }
    #expect(try threads(1, 0) == 1)
    #expect(try threads(1, 1) == 1)
    #expect(try threads(1, 64) == 1)
    #expect(try threads(8, 1) == 1)
    #expect(try (2...63).contains(threads(1, 300)))
    #expect(try threads(8, 4096) == 64)
    #expect(try threads(8, 4096, available: 3) == 3)
    // One query, but a long cache to quantise.
    #expect(try threads(8, 1, keys: 16384) > 16)
    var last = 1
    for length in 0...1000 {
      let count = try threads(1, length)
      #expect(count >= last)
      last = count
    }
  }

  @Test func pieces() {
    #expect(CPUTileSizes.pieceCount(0, 8) == 0)
    #expect(CPUTileSizes.pieceCount(8, 8) == 1)
    #expect(CPUTileSizes.pieceCount(9, 8) == 2)
  }
}
