import IntFlashAttention
import Testing

@Suite struct FoldedValueScalesTests {
  @Test func ordinaryRowsHaveIntegerReciprocals() {
    let scales = FoldedValueScales(maxima: [1, 2, 0.5, 1.5, 0])
    #expect(scales.isInteger)
    #expect(scales.unit == 1.0 / 8)
    #expect(scales.reciprocals == [15, 7, 31, 10, 127])
    for (reciprocal, maximum) in zip(scales.reciprocals, [Float(1), 2, 0.5, 1.5, 0]) {
      // No code leaves ±127.
      #expect(maximum * reciprocal / scales.unit <= 127.001)
    }
  }

  /// The rule's edge: 15.875 times the mean.
  @Test func oneHugeRowTakesTheExactRowSum() {
    var maxima = [Float](repeating: 1, count: 100)
    maxima[3] = 18
    #expect(FoldedValueScales(maxima: maxima).isInteger)
    maxima[3] = 19
    let scales = FoldedValueScales(maxima: maxima)
    #expect(!scales.isInteger)
    #expect(scales.reciprocals[3] < 1)
    #expect(scales.reciprocals.allSatisfy { $0 > 0 && $0 <= 127 })
  }

  @Test func zerosAndNothing() {
    #expect(FoldedValueScales(maxima: [0, 0]).reciprocals.allSatisfy { (1...127).contains($0) })
    #expect(FoldedValueScales(maxima: []).reciprocals.isEmpty)
  }
}
