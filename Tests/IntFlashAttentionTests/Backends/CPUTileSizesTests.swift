import CAttentionKernels
import IntFlashAttention
import Testing

@Suite struct CPUTileSizesTests {
  private func block(heads: Int, queries: Int, threads: Int) throws -> Int {
    let shape = try AttentionShape(
      queryHeadCount: heads,
      keyValueHeadCount: 1,
      queryLength: queries,
      keyValueLength: 100,
      headDimension: 64
    )
    return CPUTileSizes(shape: shape, threadCount: threads).queryBlockLength
  }

  @Test func longSequencesFillTheLargestBlock() throws {
    #expect(CPUTileSizes.largestQueryBlock == Int(INTFA_MAX_ROWS))
    #expect(try block(heads: 8, queries: 4096, threads: 1) == 256)
    #expect(try block(heads: 8, queries: 4096, threads: 2) == 256)
  }

  @Test func blocksShrinkUntilThereIsWorkForEveryThread() throws {
    #expect(try block(heads: 1, queries: 512, threads: 1) == 256)
    #expect(try block(heads: 1, queries: 512, threads: 4) == 32)
    #expect(try block(heads: 1, queries: 1, threads: 64) == 16)
  }

  @Test func blocksAreWholeGroupsOfRows() throws {
    for queries in 1...600 {
      for threads in [1, 2, 7] {
        let rows = try block(heads: 3, queries: queries, threads: threads)
        #expect(rows.isMultiple(of: Int(INTFA_ROW_UNIT)) && (16...256).contains(rows))
      }
    }
  }

  @Test func pieces() {
    #expect(CPUTileSizes.pieceCount(0, 8) == 0)
    #expect(CPUTileSizes.pieceCount(8, 8) == 1)
    #expect(CPUTileSizes.pieceCount(9, 8) == 2)
  }
}
