import IntFlashAttention
import Testing

@Suite struct FoldedValueScalesTests {
  @Test func ordinaryRowsHaveIntegerReciprocals() {
    let scales = FoldedValueScales(maxima: [1, 2, 0.5, 1.5, 0], integers: true)
    #expect(scales.isInteger && !scales.hasOutlier)
    #expect(scales.unit == 1.0 / 8)
    #expect(scales.reciprocals == [15, 7, 31, 10, 127])
    for (reciprocal, maximum) in zip(scales.reciprocals, [Float(1), 2, 0.5, 1.5, 0]) {
      // No code leaves ±127.
      #expect(maximum * reciprocal / scales.unit <= 127.001)
    }
    let real = FoldedValueScales(maxima: [1, 2, 0.5, 1.5, 0], integers: false)
    #expect(!real.isInteger && !real.hasOutlier)
    #expect(real.reciprocals[0..<2] == [15.875, 7.9375])
  }

  /// The rule's edge: four times the mean.
  @Test func oneHugeRowTakesTheExactRowSumAndLeavesTheMean() {
    var maxima = [Float](repeating: 1, count: 97)
    maxima[3] = 4
    #expect(FoldedValueScales(maxima: maxima, integers: true).isInteger)
    maxima[3] = 4.5
    let scales = FoldedValueScales(maxima: maxima, integers: true)
    #expect(scales.hasOutlier && !scales.isInteger)
    #expect(scales.unit == 1.0 / 8)
    #expect(scales.reciprocals[3] == Float(127) / 8 / 4.5)
    #expect(scales.reciprocals[0] == 15.875)
  }

  @Test func zerosAndNothing() {
    let zeros = FoldedValueScales(maxima: [0, 0], integers: true)
    #expect(zeros.reciprocals.allSatisfy { (1...127).contains($0) })
    #expect(FoldedValueScales(maxima: [], integers: true).reciprocals.isEmpty)
  }
}
